"""What the reading verbs say of a store whose every figure is known."""

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import cli_store
import pytest
from cli_calls import Call, Faked

from tuner.cli import printing, read
from tuner.core.clock import VirtualClock
from tuner.core.records import RunEnd
from tuner.reports import views

# the contract: at least these
STATUS_KEYS = {
    "study", "owner", "state", "backend", "simulated", "engine", "trials", "attempts", "interruptions",
    "resumed_runs", "restarted_from_zero", "never_checkpointed", "best", "spend_usd", "estimated_usd",
    "reserved_usd", "on_demand_usd", "saved_pct", "lost_work_s", "budget_usd", "deadline", "warnings",
}  # fmt: skip
TRIAL_KEYS = {
    "number", "state", "reason", "value", "values", "params", "step", "attempts", "interruptions", "runs", "jobs",
    "instance", "capacity", "billable_s", "training_s", "lost_work_s", "spend_usd", "estimated", "on_demand_usd",
    "checkpoint_prefix", "model_uri", "bundle",
}  # fmt: skip
STATES = ["proposed", "running", "backing_off", "paused", "succeeded", "pruned", "failed", "cancelled"]


def load(text: str) -> Any:
    """One JSON document and nothing else, without NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def strings(doc: Any) -> list[str]:
    if isinstance(doc, dict):
        return [text for value in doc.values() for text in strings(value)]
    if isinstance(doc, list):
        return [text for value in doc for text in strings(value)]
    return [doc] if isinstance(doc, str) else []


def test_status_json(call: Call, folder: Path) -> None:
    code, out, err = call("status", "digits", "--json")
    doc = load(out)
    assert (code, err) == (0, "")
    assert doc.keys() >= STATUS_KEYS
    assert doc["trials"] == dict.fromkeys(STATES, 0) | {
        "total": 24, "succeeded": 2, "pruned": 1, "failed": 1, "running": 1, "backing_off": 1,
    }  # fmt: skip
    assert (doc["study"], doc["owner"], doc["state"], doc["simulated"]) == ("digits", "ann", "running", True)
    assert doc["best"] == {"number": 1, "value": 0.95, "params": {"lr": 0.02}}
    assert (doc["attempts"], doc["interruptions"], doc["resumed_runs"], doc["restarted_from_zero"]) == (5, 1, 1, 0)
    assert doc["spend_usd"] == 0.234666 + 0.117333 + 0.039111 + 0.019555
    assert (doc["estimated_usd"], doc["reserved_usd"], doc["budget_usd"]) == (0.001234, 0.4, 60.0)
    assert (doc["saved_pct"], doc["lost_work_s"]) == (60.0, 12.5)
    assert doc["deadline"] == "2026-03-02T00:00:00Z"
    assert doc["engine"] == {"host": "here", "pid": 4711, "last_tick": "2026-03-01T12:00:05Z", "alive": False}


def test_status_of_all_is_a_list(call: Call, folder: Path) -> None:
    assert [doc["study"] for doc in load(call("status", "--json").out)] == ["digits"]


def test_an_empty_store(call: Call, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    assert load(call("status", "--json", "--store", url).out) == []
    assert "no studies yet" in call("status", "--store", url).out


def test_trials_json(call: Call, folder: Path) -> None:
    docs = load(call("trials", "digits", "--json").out)
    assert [doc["number"] for doc in docs] == [0, 1, 2, 3, 4, 5]
    assert all(doc.keys() >= TRIAL_KEYS for doc in docs)
    first = docs[0]
    assert [(run["run"], run["resumed_from_step"], run["last_step"], run["end"]) for run in first["runs"]] == [
        (1, None, 6, "interrupted"),
        (2, 4, 10, "ended"),
    ]
    assert first["jobs"][0]["name"] == "k-digits-00000-001"
    assert (first["value"], first["values"], first["step"]) == (0.91, [0.91], 10)
    assert (first["billable_s"], first["training_s"], first["lost_work_s"]) == (600, 1500, 12.5)
    assert (first["capacity"], first["instance"], first["estimated"]) == ("spot", "ml.g5.xlarge", False)


def test_what_is_not_known_is_null_and_what_is_nothing_is_zero(call: Call, folder: Path) -> None:
    docs = load(call("trials", "digits", "--json").out)
    running, waiting = docs[4], docs[5]
    assert (running["spend_usd"], running["billable_s"], running["on_demand_usd"]) == (None, None, None)
    assert (running["estimated"], running["estimated_usd"], running["value"]) == (True, 0.001234, None)
    assert running["last_value"] is None  # infinity, which JSON does not have
    assert (waiting["spend_usd"], waiting["instance"], waiting["model_uri"]) == (0.0, None, None)


def test_show_json(call: Call, folder: Path) -> None:
    doc = load(call("show", "digits", 0, "--json").out)
    assert doc["attempts"][0]["runs"][1]["resumed_from_step"] == 4
    assert [point["value"] for point in doc["metrics"]["val_accuracy"]] == [0.5, None, 0.91]
    kinds = ["trial.propose", "attempt.interrupt", "refused", "trial.thawed"]
    assert [event["kind"] for event in doc["events"]] == kinds
    assert [event["text"] for event in doc["events"][:2]] == [
        None,
        "capacity was taken from trial 0; its job waits for it",
    ]


def test_best_json(call: Call, folder: Path) -> None:
    assert [doc["number"] for doc in load(call("best", "digits", "-n", 5, "--json").out)] == [1, 0]
    assert [doc["number"] for doc in load(call("best", "digits", "--json").out)] == [1]


def test_every_time_is_iso_8601_in_utc(call: Call, folder: Path) -> None:
    for words in (["status", "digits"], ["trials", "digits"], ["show", "digits", 0], ["compare", "digits"]):
        dated = [text for text in strings(load(call(*words, "--json").out)) if re.match(r"\d{4}-\d\d-\d\dT", text)]
        assert dated
        assert all(text.endswith("Z") and datetime.fromisoformat(text).tzinfo for text in dated)


def test_status_as_text(call: Call, folder: Path) -> None:
    lines = call("status", "digits").out.splitlines()
    assert lines[0] == "digits (local, by ann)"
    assert lines[1] == "state          running"
    assert lines[3:9] == [
        "trials         4 of 24 ended (2 succeeded, 1 pruned, 1 failed); 1 running, 1 backing off",
        "best           0.95 (trial 1)",
        "spend          $0.4107 + $0.001234 estimated, $0.4000 reserved, of $60.00 (simulated)",
        "on demand      $1.03 (simulated), saved 60.0%",
        "interruptions  1, 1 run resumed",
        "work lost      12.5s",
    ]
    assert lines[9].startswith("pool           ml.g5.xlarge spot: ")
    assert lines[-1] == "store sqlite:///tuner.db"


def test_trials_as_text(call: Call, folder: Path) -> None:
    out = call("trials", "digits").out
    rows = [line.split() for line in out.splitlines()]
    assert " ".join(rows[2]) == "0 succeeded 0.91 10 1 1 4 $0.2347 12.5s lr=0.01"
    assert rows[6][6:8] == ["~$0.001234", "0s"]
    assert out.splitlines()[-2] == "all on ml.g5.xlarge spot"
    assert out.splitlines()[-1] == "dollars are simulated: list prices of a local study, which nobody pays"


def test_the_story_of_a_trial(call: Call, folder: Path) -> None:
    out = call("show", "digits", 0).out
    assert "  run 1: started, reached step 6, interrupted, 12.5s of work lost\n" in out
    assert "  run 2: resumed from step 4, reached step 10, ended\n" in out
    assert "  billed 10m00s = $0.2347\n" in out


def test_show_has_the_sentences_of_events(call: Call, folder: Path) -> None:
    out = " ".join(call("show", "digits", 0).out.split())
    assert "capacity was taken from trial 0; its job waits for it" in out
    assert "an event of a newer version of tuner: trial.thawed" in out


@pytest.mark.parametrize("words", ["trials digits", "show digits 0", "show digits 3"])
def test_foreign_text_is_shown_not_obeyed(call: Call, folder: Path, words: str) -> None:
    """The failed trial's reason and an event's message hold terminal escapes and markup of the table library."""
    out = call(*words.split()).out
    assert "\x1b" not in out
    assert r"\x1b[31mred\x1b[0m [bold]x[/bold]" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trials digit", "no study 'digit'"),
        ("status nope", "no study 'nope'"),
        ("show digits 99", "has no trial 99: it has trials 0 to 5"),
        ("best nope", "no study 'nope'"),
        ("compare digits nope", "no study 'nope'"),
        ("local jobs nope", "no study 'nope'"),
    ],
)
def test_an_unknown_name_is_one_line_and_exit_2(call: Call, folder: Path, words: str, said: str) -> None:
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["status", "trials digits", "db current", "db upgrade"])
def test_a_store_that_is_none_is_one_line_and_exit_4(call: Call, tmp_path: Path, verb: str) -> None:
    file = tmp_path / "text.db"
    file.write_text("no database, but a text that is long enough to look at " * 20)
    code, out, err = call(*verb.split(), "--store", f"sqlite:///{file}")
    assert (code, out) == (4, "")
    assert err.count("\n") == 1


def test_what_check_says_to_do_is_for_the_store_that_was_named(call: Call, folder: Path) -> None:
    """Pasted without it, the line met another store, and no such study."""
    url = f"sqlite:///{folder}/tuner.db"
    out = call("status", "digits", "--check", "--store", url).out
    assert f"tuner --store {url} resume digits\n" in out


def test_a_refusal_names_the_store_that_was_named_too(call: Call, folder: Path) -> None:
    url = f"sqlite:///{folder}/tuner.db"
    assert f"tuner --store {url} trials digits lists them" in call("logs", "digits", "99", "--store", url).err
    assert "tuner trials digits lists them" in call("logs", "digits", "99").err


def test_what_a_script_said_is_no_command_of_ours(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason that reads like a command comes out as the script wrote it, whatever store was named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_store, "ESCAPE", "see `tuner resume foo`, or tuner stop bar")
    cli_store.seed(tmp_path).close()
    url = f"sqlite:///{tmp_path}/tuner.db"
    for words in (("trials", "digits"), ("show", "digits", 3), ("show", "digits", 0)):
        out = " ".join(call(*words, "--store", url).out.split())
        assert "see `tuner resume foo`, or tuner stop bar" in out


def test_check_exits_1_and_names_the_problems(call: Call, folder: Path) -> None:
    dead = Faked(check=lambda name, store: [f"{name}: engine dead"])
    code, out, _ = call("status", "digits", "--check", use_cases=dead)
    assert code == 1
    assert "digits: problem: digits: engine dead" in out
    doc = load(call("status", "digits", "--check", "--json", use_cases=dead).out)
    assert doc["problems"] == ["digits: engine dead"]
    assert call("status", "--check", use_cases=Faked(check=lambda name, store: [])).code == 0


def test_work_started_over_is_said_loudly(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, over = cli_store.run, {"restarted_from_zero": True, "resumed_from_step": None, "first_step": 1}
    monkeypatch.setattr(cli_store, "run", lambda *a, **k: run(*a, **k | (over if a == (0, 2) else {})))
    cli_store.seed(tmp_path).close()
    out = call("status", "digits").out
    assert "1 RESTARTED FROM ZERO" in out
    assert "WARNING: 1 run RESTARTED FROM ZERO although a checkpoint was there" in out
    assert "run 2: RESTARTED FROM ZERO" in call("show", "digits", 0).out


def test_work_done_again_since_a_newer_checkpoint_is_said_loudly(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, older = cli_store.run, {"resumed_from_step": 2, "first_step": 3}
    monkeypatch.setattr(cli_store, "run", lambda *a, **k: run(*a, **k | (older if a == (0, 2) else {})))
    cli_store.seed(tmp_path).close()
    out = call("status", "digits").out
    assert "1 run resumed, 1 FROM AN OLDER CHECKPOINT" in out
    assert "WARNING: 1 run BEGAN BEFORE THE NEWEST CHECKPOINT" in out
    assert "run 2: resumed from step 2 at best, NOT FROM 4, the newest, reached" in call("show", "digits", 0).out
    doc = load(call("trials", "digits", "--json").out)[0]["runs"][1]
    assert (doc["resumed_from_step"], doc["resume_step"], doc["resumed_from_older"]) == (2, 4, True)


def test_a_resume_that_no_step_proves_is_said(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, unknown = cli_store.run, ("resumed_from_step", "resume_step", "restarted_from_zero", "first_step")
    change = {**dict.fromkeys(unknown), "had_checkpoint": True}
    monkeypatch.setattr(
        cli_store, "run", lambda *a, **k: run(*a, **k | (change if a == (0, 2) else {"first_step": None}))
    )
    cli_store.seed(tmp_path).close()
    out = call("status", "digits").out
    assert "0 runs resumed, 1 unproven" in out
    assert "warning: resume of 1 run unproven, and the work lost unknown: no step is known of them" in out


@pytest.mark.parametrize(
    ("known", "said"), [(0.0, ("at least 0s", "0s of work lost")), (None, ("-", "work lost not known"))]
)
def test_work_lost_is_no_less_certain_than_what_is_known_of_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known, said
) -> None:
    """The first trial was cut twice, and of the second time it is not known what it cost."""
    monkeypatch.chdir(tmp_path)
    run, cut = cli_store.run, {(0, 1): {"lost_work_s": known}, (0, 2): {"end": RunEnd.INTERRUPTED, "lost_work_s": None}}
    monkeypatch.setattr(cli_store, "run", lambda *a, **k: run(*a, **k | cut.get(a, {"lost_work_s": None})))
    cli_store.seed(tmp_path).close()
    out = call("status", "digits").out
    assert re.search(rf"work lost +{said[0]}$", out, re.MULTILINE)
    doc, unknown = load(call("status", "digits", "--json").out), 1 if known is not None else 2
    assert (doc["lost_work_s"], doc["lost_work_unknown_runs"]) == (known, unknown)
    row = load(call("trials", "digits", "--json").out)[0]
    assert (row["lost_work_s"], row["lost_work_unknown_runs"]) == (known, unknown)
    out = call("show", "digits", 0).out
    assert f"work lost    {said[0]} in" in out
    assert f"run 1: started, reached step 6, interrupted, {said[1]}\n" in out


def test_a_minimized_study_has_its_smallest_value_as_best(call: Call, tmp_path: Path) -> None:
    cli_store.seed(tmp_path, "loss", "minimize").close()
    doc = load(call("status", "loss", "--json", "--store", f"sqlite:///{tmp_path}/tuner.db").out)
    assert doc["best"]["number"] == 0


def test_watch_on_paper_prints_changes_and_ends_with_the_study(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = []

    class Passing(VirtualClock):
        """The study comes to its end while somebody waits for the fourth look."""

        def wait(self, until: datetime, *, due: datetime | None = None) -> None:
            super().wait(until, due=due)
            waits.append(until)
            if len(waits) == 3:
                with closing(sqlite3.connect(folder / "tuner.db")) as database, database:
                    database.execute("UPDATE tuner_studies SET state = 'finished'")

    args = type("Args", (), {"store": None, "study": "digits", "options": ()})()
    assert read.watch(args, Passing(cli_store.NOW)) == 0
    assert len(waits) == 3
    printed = re.findall(r"^state +(\w+)", capsys.readouterr().out, re.MULTILINE)
    assert printed == ["running", "finished"]


def test_logs_show_control_characters(call: Call, folder: Path) -> None:
    use_cases = Faked(log_chunks=lambda *a, **k: iter(["epoch=1\t0.5\r\n", "bad \x1b[2J\n"]))
    assert call("logs", "digits", 0, use_cases=use_cases).out == "epoch=1\t0.5\nbad \\x1b[2J\n"
    doc = load(call("logs", "digits", 0, "--json", use_cases=use_cases).out)
    assert doc["text"] == "epoch=1\t0.5\r\nbad \x1b[2J\n"


def test_compare_formats(call: Call, folder: Path) -> None:
    doc = load(call("compare", "digits", "--json").out)
    assert doc["frontier"] == [{"study": "digits", "number": 1, "value": 0.95, "spend_usd": 0.117333}]
    assert call("compare", "digits", "--format", "csv", "-o", "out.csv").out == ""
    lines = (folder / "out.csv").read_text().splitlines()
    assert lines[0].startswith("study,number,state,value,spend_usd")
    assert lines[5] == "digits,4,running,,,,2,0,,false,0.05"
    assert call("compare", "digits", "--format", "png", "-o", "out.png").code == 0
    assert (folder / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_a_study_named_twice_is_compared_once(call: Call, folder: Path) -> None:
    assert len(load(call("compare", "digits", "digits", "--json").out)["studies"]) == 1


def test_a_file_that_cannot_be_written_is_one_line(call: Call, folder: Path) -> None:
    for kind in ("csv", "png"):
        code, _, err = call("compare", "digits", "--format", kind, "-o", folder / "no" / "where")
        assert code == 2
        assert err.startswith("tuner: cannot write")
        assert err.count("\n") == 1


def test_best_download(call: Call, folder: Path) -> None:
    prefix = folder / ".tuner" / "s3" / "bucket" / "digits" / "00001"
    (prefix / "step-10").mkdir(parents=True)
    (prefix / "step-10" / "w.npz").write_bytes(b"weights")
    code, _, err = call("best", "digits", "--download", "mine")
    assert code == 0
    assert "trial 1: 1 files" in err
    assert (folder / "mine/trial-00001/checkpoints/step-10/w.npz").read_bytes() == b"weights"


def test_local_jobs_of_nothing(call: Call, folder: Path) -> None:
    assert load(call("local", "jobs", "--json").out) == []
    assert call("local", "jobs", "digits").out == "no local jobs\n"


def test_db(call: Call, folder: Path) -> None:
    doc = load(call("db", "current", "--json").out)
    assert doc["schema"] == doc["newest"]
    assert call("db", "upgrade").out.startswith(f"schema {doc['newest']} at sqlite:///")


def test_a_closed_pipe_is_quiet(folder: Path) -> None:
    line = f"{shlex.quote(sys.executable)} -m tuner trials digits --json | head -c 1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, env=_environment())
    assert (done.stdout, done.stderr) == ("[", "")


def test_status_loads_no_cloud_library(folder: Path) -> None:
    heavy = ["botocore", "boto3", "optuna", "pandas", "matplotlib", "numpy", "alembic"]
    code = f"import sys, tuner.cli.main as c\nc.main(['status'])\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.splitlines()[-1] == "[]"


def _environment() -> dict[str, str]:
    """With what a Python may need to start, such as LD_LIBRARY_PATH."""
    return {**os.environ, "PYTHONPATH": str(Path(read.__file__).parents[2])}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "1 run resumed"),
        ([4, 4], "1 run resumed (from step 4)"),
        ([3, 4, 4], "1 run resumed (from steps 3, 4)"),
        (list(range(1, 13)), "1 run resumed (from steps 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)"),
        (
            [*range(1, 30), 2, 2],
            "1 run resumed (from steps 1 to 29, in the median 14; each: tuner trials digits)",
        ),
    ],
)
def test_the_steps_that_runs_resumed_from_are_all_told_or_summed(folder: Path, steps, said) -> None:
    store = cli_store.Store.open(f"sqlite:///{folder}/tuner.db")
    doc = views.summary_view(store, store.study("digits"), cli_store.NOW) | {"resumed_from_steps": steps}
    store.close()
    assert f"  interruptions  1, {said}\n" in printing.final_summary(doc)
