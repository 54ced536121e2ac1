"""Every command that the product prints is one that it takes: it parses, and where it was printed, it is accepted."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_calls import Call, Called

import tuner
from tuner.cli.main import parser
from tuner.core.commands import Command, stored
from tuner.core.records import HALTED, Change, Intent, StudyState
from tuner.local.market import write_market
from tuner.operations import lease_holder
from tuner.operations.backend import BACKENDS, LocalBackend
from tuner.spec import workload
from tuner.spec.study_file import from_json
from tuner.store.store import Store

ROOT = Path(tuner.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
VERBS = sorted(next(action for action in parser()._actions if action.choices).choices)
# Stands for a word that the code fills in: good as a name, a path, a number of a trial.
FILLED_IN = "7"

SCRIPT = """
import os
from tuner.training import report
lr = float(os.environ["SM_HP_LR"])
report(1, loss=lr)
"""
STUDY: dict[str, Any] = {
    "name": "small",
    "objective": {"metric": "loss", "direction": "minimize"},
    "space": {"lr": {"type": "float", "low": 0.01, "high": 0.5}},
    "search": {"sampler": {"name": "RandomSampler", "seed": 3}},
    "trials": 1,
    "training": {"entry_point": "train.py", "max_run": "5m", "max_wait": "10m"},
}


def made(tree: ast.AST) -> Iterator[list[str]]:
    """The words of each `Command(...)` of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Command":
            words = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
            yield [arg.value if isinstance(arg, ast.Constant) else FILLED_IN for arg in words]


COMMANDS = sorted({tuple(words) for path in SOURCES for words in made(ast.parse(path.read_text()))} - {()})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_code_is_one_that_the_command_line_has(words: tuple[str, ...]) -> None:
    assert parser().parse_args(["--store", "sqlite:///x.db", *words]).run


def test_all_of_them_are_found() -> None:
    """One verb each of those that a refusal, a warning or a finding names."""
    found = {words[0] for words in COMMANDS}
    assert found >= {"audit", "best", "cancel", "doctor", "gc", "launch", "resume", "set", "show", "stop", "trials"}


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module but its docstrings."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_no_text_holds_a_command_in_words() -> None:
    """Such a command would lose the options of the call. A verb alone in backticks is not a command."""
    command = re.compile(rf"\btuner (?:{'|'.join(VERBS)})\b(?!`)")
    found = [(path, text) for path in SOURCES for text in texts(ast.parse(path.read_text())) if command.search(text)]
    assert found == []


# --- followed where they are printed


class Desk:
    """A directory with a study that takes a second, and a store whose name has to be quoted."""

    def __init__(self, folder: Path, call: Call) -> None:
        self.folder, self._call = folder, call
        self.url = f"sqlite:///{folder}/my studies.db"
        (folder / "train.py").write_text(SCRIPT)
        self.write()

    def write(self, **changes: object) -> None:
        (self.folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes))

    def run(self, *words: object) -> Called:
        return self._call("--store", self.url, *words)

    def follow(self, printed: Called, *words: str) -> Called:
        """Paste a command that was printed, with the options of the call that printed it."""
        line = Command(words[0], *words[1:]).line(("--store", self.url))
        assert line in printed.out + printed.err
        followed = self._call(*shlex.split(line)[1:])
        assert followed.code != 2, followed.err
        return followed

    def store(self) -> Store:
        return Store.open(self.url)

    def left(self, **changes: Any) -> None:
        """Leave the study as an engine would that was killed."""
        store = self.store()
        study = store.study("small")
        now = study.last_tick_at or study.created_at
        lease = store.acquire(study.id, lease_holder.this_process(), now=now, period_s=60, gone=lease_holder.gone)
        current = store.study("small")
        changed = replace(current, version=current.version + 1, **changes)
        store.commit(lease, Change(study=(current, changed)), now=now)
        store.release(lease)
        store.close()


@pytest.fixture
def desk(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, call)


@pytest.fixture
def finished(desk: Desk) -> Desk:
    launched = desk.run("launch", "study.yaml")
    assert launched.code == 0, launched.err
    return desk


def test_a_study_from_its_first_hint_to_its_results(desk: Desk) -> None:
    none = desk.run("status")
    (desk.folder / "FILE").write_text((desk.folder / "study.yaml").read_text())
    launched = desk.follow(none, "launch", "FILE")
    for words in (("best", "small"), ("show", "small", "0"), ("compare", "small")):
        assert desk.follow(launched, *words).code == 0
    assert desk.follow(desk.run("launch", "FILE"), "resume", "small").code == 0
    assert desk.follow(desk.run("logs", "small", 99), "trials", "small").code == 0
    assert desk.follow(desk.run("set", "small", "trials=2"), "resume", "small").code == 0


@pytest.mark.slow
def test_changes_are_accepted_by_what_says_so(finished: Desk) -> None:
    (finished.folder / "train.py").write_text(SCRIPT + "# edited\n")
    edited = finished.run("resume", "small")
    assert finished.follow(edited, "resume", "small", "--accept-changes").code == 0
    finished.write(training=STUDY["training"] | {"hyperparameters": {"epochs": 3}})
    refused = finished.run("resume", "small")
    assert refused.code == 2
    assert finished.follow(refused, "resume", "small", "--accept-changes").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("intent", "words"),
    [
        (Intent.RUN, ("resume", "small")),
        (Intent.STOP, ("stop", "small")),
        (Intent.STOP_NOW, ("stop", "small", "--now")),
        (Intent.DRAIN, ("stop", "small", "--drain")),
        (Intent.CANCEL, ("cancel", "small")),
    ],
)
def test_a_study_without_an_engine_goes_on(finished: Desk, intent: Intent, words: tuple[str, ...]) -> None:
    finished.left(state=StudyState.RUNNING, intent=intent)
    checked = finished.run("status", "small", "--check")
    assert checked.code == 1
    assert finished.follow(checked, *words).code == 0


@pytest.mark.slow
def test_a_cancellation_is_brought_to_its_end(finished: Desk) -> None:
    finished.left(state=StudyState.RUNNING, intent=Intent.CANCEL)
    refused = finished.run("stop", "small")
    assert refused.code == 2
    assert finished.follow(refused, "cancel", "small").code == 0


@pytest.mark.slow
def test_a_halted_study_retries_what_failed(finished: Desk) -> None:
    halted = stored("three jobs were refused. Mend it", Command("resume", "small", "--retry-failed"))
    finished.left(state=StudyState.STOPPED, intent=Intent.DRAIN, attrs={HALTED: halted})
    status = finished.run("status", "small")
    assert "warning: three jobs were refused. Mend it, then: tuner --store" in status.out
    assert finished.follow(finished.run("status", "small", "--json"), "resume", "small", "--retry-failed").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "key", "value"),
    [(StudyState.OUT_OF_BUDGET, "budget.usd", "90"), (StudyState.PAST_DEADLINE, "budget.deadline", "3d")],
)
def test_a_limit_is_raised_and_the_study_goes_on(finished: Desk, state: StudyState, key: str, value: str) -> None:
    finished.left(state=state)
    resting = finished.run("resume", "small", "--once")
    assert f"small is {state.value}" in resting.out
    left_open = Command("set", "small", f"{key}=…").line(("--store", finished.url))
    assert left_open in resting.out
    assert finished.run(*shlex.split(left_open.replace("…", value))[3:]).code == 0
    assert finished.follow(resting, "resume", "small").code == 0
    finished.left(state=state)
    assert finished.follow(resting, "cancel", "small").code == 0


@pytest.mark.slow
def test_an_orphan_is_ended(finished: Desk) -> None:
    store = finished.store()
    study, attempts, trials = (found := store.study("small")), store.attempts(found.id), store.trials(found.id)
    store.close()
    backend = BACKENDS.of(study)
    assert isinstance(backend, LocalBackend)
    request = workload.job_request(from_json(study.spec), study, trials[0], attempts[0])
    # a job that waits for capacity does not end before it is asked to
    gone = {"kind": "at", "at_s": [0.0], "down_s": 1e6, "started_at": datetime.now(UTC).isoformat()}
    write_market(finished.folder / ".tuner", study.key, gone)
    backend.jobs().create(replace(request, name=f"{study.key}-00077-001"))
    audit = finished.run("audit", "small")
    assert audit.code == 1
    ended = finished.follow(audit, "audit", "small", "--stop-orphans")
    assert f"stopping {study.key}-00077-001" in ended.err


@pytest.mark.slow
def test_a_state_directory_that_was_moved_is_named(finished: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (finished.folder / ".tuner").rename(finished.folder / "elsewhere")
    refused = finished.run("resume", "small")
    assert refused.code == 4
    assert "TUNER_LOCAL=DIR tuner --store" in refused.err
    monkeypatch.setenv("TUNER_LOCAL", str(finished.folder / "elsewhere"))
    assert finished.follow(refused, "resume", "small").code == 0


def test_the_ways_to_hear_of_changed_jobs_are_taken(desk: Desk) -> None:
    """No account is there to change: what needs one is refused for that, not for what was typed."""
    how = desk.run("doctor", "--events")
    assert desk.follow(how, "doctor", "--events").code == 0
    for what in ("use", "create", "remove"):
        assert desk.follow(how, "doctor", "--events", what).code == 4


@pytest.mark.slow
def test_a_sweep_can_be_cleaned_up_again(finished: Desk) -> None:
    """As is said where its checkpoints could not be deleted when it came to rest."""
    assert finished.run("gc", "small").code == 0


@pytest.mark.slow
def test_what_a_script_says_as_it_fails_comes_out_unchanged(desk: Desk) -> None:
    said = "it is full; tuner resume foo --store bar, or `tuner gc foo`"
    (desk.folder / "train.py").write_text(f"raise SystemExit({said!r})\n")
    failed = desk.run("launch", "study.yaml")
    assert failed.code == 1
    shown = desk.run("show", "small", 0).out
    for text in (failed.err, desk.run("trials", "small").out, shown, desk.run("trials", "small", "--json").out):
        assert said in " ".join(text.split())
