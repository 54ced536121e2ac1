"""The verbs that drive a study: what they are told, what they print where, and how they exit; on fake use cases."""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cli_store
import pytest
from cli_calls import Call, Faked

from tuner.core.errors import Exit, Finding, UserError
from tuner.core.records import StudyState, TrialState
from tuner.operations.records import LaunchPlan, StudyOutcome
from tuner.operations.retention import Survey, Waste
from tuner.operations.use_cases import UseCases
from tuner.reports import views
from tuner.reports.records import Audit, AuditRow, Orphan
from tuner.spec.study_file import load
from tuner.store.store import Store


@dataclass
class Fake:
    """Stands in for the use cases that drive a study; remembers what it was told."""

    file: Path
    backend: str = "local"
    exit_code: int = Exit.DONE
    state: StudyState = StudyState.FINISHED
    presses: Sequence[int] = ()  # signals that come while the engine runs
    told: dict[str, Any] = field(default_factory=dict)

    def plan(self, file: Path, overrides: Sequence[str]) -> LaunchPlan:
        self.told |= {"file": file, "overrides": overrides}
        spec = load(self.file)
        object.__setattr__(spec, "backend", self.backend)
        warnings = ("no \x1b[31mprice",)
        return LaunchPlan(
            spec=spec,
            headline=(("rate", "$1.41/h"),),
            rows=(("trials", "24"),),
            estimated_usd=1.5,
            ceiling_usd=60.0,
            warnings=warnings,
        )

    def drive(self, what: object, store: Store, *, display: Any, signals: Any, **more: Any) -> StudyOutcome:
        self.told |= {"what": what, **more}
        for number in self.presses:
            os.kill(os.getpid(), number)
        doc = views.summary_view(store, store.study("digits"), cli_store.NOW)
        code = signals.exit_code or self.exit_code
        return StudyOutcome(study_state=self.state, exit_code=code, summary=doc | {"state": self.state.value})

    @property
    def use_cases(self) -> UseCases:
        verbs = dict.fromkeys(("launch", "resume", "request_stop", "request_cancel"), self.drive)
        return Faked(plan=self.plan, prepare=lambda plan, store: plan, **verbs)


@pytest.fixture
def fake(folder: Path) -> Fake:
    return Fake(cli_store.spec_file(folder))


@pytest.fixture
def call(call: Call, fake: Fake) -> Call:
    """On the fake, unless a test has other use cases."""
    return lambda *words, use_cases=None: call(*words, use_cases=use_cases or fake.use_cases)


def test_launch_prints_the_plan_aside_and_the_summary_as_its_result(call: Call, fake: Fake) -> None:
    code, out, err = call("launch", "study.yaml", "--set", "trials=4", "--set", "budget.usd=1")
    assert code == 0
    assert fake.told["overrides"] == ["trials=4", "budget.usd=1"]
    assert "estimated cost  $1.50 (simulated)" in err
    assert "store sqlite:///tuner.db" in err
    assert out.splitlines() == [
        "digits is finished: 4 of 24 ended (2 succeeded, 1 pruned, 1 failed); 1 running, 1 backing off",
        "  best           0.95 (trial 1)",
        "  spend          $0.4107 + $0.001234 estimated, $0.4000 reserved, of $60.00 (simulated)",
        "  on demand      $1.03 (simulated), saved 60.0%",
        "  interruptions  1, 1 run resumed (from step 4)",
        "  work lost      12.5s",
        "next:",
        "  tuner best digits",
        "  tuner show digits 1",
        "  tuner compare digits",
    ]


def test_a_dry_run_shows_the_plan_and_launches_nothing(call: Call, fake: Fake) -> None:
    code, out, _ = call("launch", "study.yaml", "--dry-run")
    assert code == 0
    assert out.splitlines()[0].split() == ["trials", "24"]
    assert "warning: no \\x1b[31mprice" in out
    assert "what" not in fake.told


def test_money_is_not_spent_without_a_word(call: Call, fake: Fake) -> None:
    fake.backend = "sagemaker"
    code, _, err = call("launch", "study.yaml")
    assert code == 2
    assert "pass -y" in err.splitlines()[-1]
    assert "what" not in fake.told
    assert call("launch", "study.yaml", "-y").code == 0


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("\n", 2), ("n\n", 2), ("", 2)])
def test_the_answer_counts(call: Call, fake: Fake, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = staticmethod(lambda: answer)

    fake.backend = "sagemaker"
    monkeypatch.setattr("sys.stdin", Terminal())
    assert call("launch", "study.yaml").code == code
    assert ("what" in fake.told) is (code == 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_in_order_and_says_how_to_go_on(call: Call, fake: Fake, number: int, code: int) -> None:
    fake.presses, fake.state = [number], StudyState.RUNNING
    left, out, err = call("resume", "digits", "--store", "sqlite:///tuner.db")
    assert left == code
    assert "jobs in flight go on: tuner --store sqlite:///tuner.db resume digits" in err
    assert "tuner --store sqlite:///tuner.db cancel digits" in err
    assert out.splitlines()[-2] == "  tuner --store sqlite:///tuner.db resume digits"


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_the_verbs_own(call: Call, fake: Fake, code: int) -> None:
    fake.exit_code = code
    assert call("resume", "digits").code == code
    assert call("cancel", "digits").code == code


@pytest.mark.parametrize(
    ("state", "first"),
    [
        (StudyState.OUT_OF_BUDGET, "  tuner set digits budget.usd=…"),
        (StudyState.PAST_DEADLINE, "  tuner set digits budget.deadline=…"),
        (StudyState.STOPPED, "  tuner resume digits"),
        (StudyState.FINISHED, "  tuner best digits"),
    ],
)
def test_the_next_commands_fit_the_state(call: Call, fake: Fake, state: StudyState, first: str) -> None:
    fake.state = state
    assert call("resume", "digits").out.split("next:\n")[1].splitlines()[0] == first


def test_options_reach_the_verbs(call: Call, fake: Fake) -> None:
    call("resume", "digits", "--accept-changes", "--retry-failed", "--once", "--no-wait")
    given = {"accept_changes": True, "retry_failed": True, "once": True, "no_wait": True}
    assert fake.told == {"what": "digits", **given}
    call("stop", "digits", "--drain")
    assert (fake.told["now_"], fake.told["drain"]) == (False, True)
    call("stop", "digits", "--now")
    assert (fake.told["now_"], fake.told["drain"]) == (True, False)


def test_a_refusal_is_one_line_with_its_code(call: Call) -> None:
    def held(*_: Any, **__: Any) -> StudyOutcome:
        raise UserError("study digits is driven by pid 3 on \x1b]0;here", Exit.NOT_FINISHED)

    code, out, err = call("resume", "digits", use_cases=Faked(resume=held))
    assert (code, out) == (3, "")
    assert err == "tuner: study digits is driven by pid 3 on \\x1b]0;here\n"


def test_all_once(call: Call) -> None:
    done = StudyOutcome(study_state=StudyState.RUNNING, exit_code=3)
    held = StudyOutcome(study_state=StudyState.RUNNING, exit_code=3, refused="held by pid 3")
    two = Faked(resume_all_once=lambda *a, **k: [("digits", done), ("plain", held)])
    assert call("resume", "--all", "--once", use_cases=two)[:2] == (3, "digits is running\nplain: held by pid 3\n")
    none = Faked(resume_all_once=lambda *a, **k: [])
    assert call("resume", "--all", "--once", use_cases=none).code == 0


def test_set_prints_what_was_changed(call: Call) -> None:
    use_cases = Faked(request_set=lambda name, store, given: [f"{name}: {each}" for each in given])
    said = call("set", "digits", "trials=3", "parallel=1", use_cases=use_cases).out
    assert said == "digits: trials=3\ndigits: parallel=1\n"


def test_audit(call: Call) -> None:
    row = AuditRow(
        job="k-1", trial=1, attempt=1, status="Completed", billed_usd=0.2, ledger_usd=0.1, difference="ledger differs"
    )
    wrong = Audit(lines=("k-1: ledger differs: run tuner resume",), rows=(row,))
    stopped = Audit(lines=(), rows=(), stopped=(Orphan(job="k-\x1b9", text="ORPHAN"),))
    use_cases = Faked(audit=lambda name, store, stop_orphans: stopped if stop_orphans else wrong)
    code, out, _ = call("audit", "digits", use_cases=use_cases)
    assert code == 1
    assert "k-1: ledger differs: run tuner resume" in out
    doc = json.loads(call("audit", "digits", "--json", use_cases=use_cases).out)
    assert (doc["ok"], doc["attempts"][0]["ledger_usd"]) == (False, 0.1)
    code, _, err = call("audit", "digits", "--stop-orphans", "--force", use_cases=use_cases)
    assert (code, err) == (0, "stopping k-\\x1b9\n")


def test_gc_shows_what_goes_and_what_stays(call: Call) -> None:
    waste = Waste(
        trial=3, state=TrialState.PRUNED, prefix="s3://b/k/00003/", kept_step=None, objects=7, size_bytes=5 << 30
    )
    found = Survey(keep="best", waste=(waste,), total_bytes=6 << 30)
    asked = []
    use_cases = Faked(gc=lambda name, store, dry_run: asked.append(dry_run) or found)
    out = call("gc", "digits", "--dry-run", use_cases=use_cases).out
    assert "would delete 5.0 GiB ($0.1150 a month at S3's list price, simulated), since checkpoints.keep is best" in out
    assert "1.0 GiB stay" in out
    doc = json.loads(call("gc", "digits", "--force", "--json", use_cases=use_cases).out)
    assert (doc["dry_run"], doc["size_bytes"], doc["trials"][0]["objects"]) == (False, 5 << 30, 7)
    assert doc["left_usd_per_month"] == pytest.approx(0.023)
    assert asked == [True, False]
    use_cases = Faked(gc=lambda name, store, dry_run: Survey(keep="all", waste=(), total_bytes=10))
    assert call("gc", "digits", "--force", use_cases=use_cases).out.startswith(
        "digits: nothing to delete, checkpoints.keep is all; 10 B stay"
    )


def test_doctor(call: Call) -> None:
    found = [Finding(level="ok", what="store"), Finding(level="error", what="no room", remedy="make some")]
    code, out, _ = call("doctor", use_cases=Faked(doctor=lambda file, url, clock: found))
    assert code == 1
    assert out.splitlines() == ["ok     store", "error  no room", "       remedy: make some"]
    well = Faked(doctor=lambda file, url, clock: found[:1])
    assert json.loads(call("doctor", "--json", use_cases=well).out) == {
        "ok": True,
        "findings": [{"level": "ok", "what": "store", "remedy": ""}],
        "facts": [],
    }
