"""A store with one study whose every figure is known, for golden outputs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests import factories
from tuner.core.records import (
    Attempt,
    AttemptEnd,
    AttemptState,
    Change,
    Run,
    RunEnd,
    Study,
    Trial,
    TrialState,
)
from tuner.spec.study_file import load, to_json
from tuner.store.store import Store

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ESCAPE = "\x1b[31mred\x1b[0m [bold]x[/bold]"
RATE = 1_408_000
CODE = "s3://bucket/code/"
_FILE = """\
name: {name}
objective: {{metric: val_accuracy, direction: {direction}}}
space: {{lr: {{type: float, low: 1.0e-4, high: 0.1, log: true}}}}
trials: 24
parallel: 2
training: {{entry_point: train.py, instance_types: [ml.g5.xlarge], max_run: 10m, max_wait: 1h}}
budget: {{usd: 60, deadline: 12h}}
"""


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def spec_file(folder: Path, name: str = "digits", direction: str = "maximize") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").touch()
    file = folder / "study.yaml"
    file.write_text(_FILE.format(name=name, direction=direction))
    return file


def study(folder: Path, name: str = "digits", direction: str = "maximize", **changes: Any) -> Study:
    given: dict[str, Any] = {
        "version": 1,
        "spec": to_json(load(spec_file(folder, name, direction))),
        "bundle_uri": CODE,
        "local_dir": ".tuner",
        "created_at": NOW,
    }
    return factories.study(name, **given | changes)


def trial(number: int, state: TrialState, name: str = "digits", **changes: Any) -> Trial:
    over = {"finished_at": later(100 * number + 100), "told_seq": 1} if state.terminal else {}
    given: dict[str, Any] = {
        "state": state,
        "version": 1,
        "params": {"lr": 0.01 * (number + 1)},
        "prefix": f"s3://bucket/{name}/{number:05d}/",
        "bundle_uri": CODE,
        "created_at": NOW,
        "attempts": 1,
    }
    return factories.trial(number, **given | over | changes)


def attempt(number_of_trial: int, name: str = "digits", **changes: Any) -> Attempt:
    given: dict[str, Any] = {
        "version": 1,
        "arn": f"arn:aws:sagemaker:us-east-1:000000000000:training-job/k-{name}-{number_of_trial:05d}-001",
        "rate_microusd_per_h": RATE,
        "max_run_s": 600,
        "max_wait_s": 3600,
        "reserved_microusd": 400_000,
        "created_at": NOW,
        "submitted_at": later(1),
    }
    return factories.attempt(number_of_trial, key=f"k-{name}", **given | changes)


def ended(number: int, billable_s: int, name: str = "digits", **changes: Any) -> Attempt:
    """An attempt that ran 2.5 times as long as it was billed."""
    final: dict[str, Any] = {
        "state": AttemptState.ENDED,
        "end": AttemptEnd.COMPLETED,
        "ended_at": later(100 * number + 100),
        "training_s": billable_s * 5 // 2,
        "billable_s": billable_s,
        "spend_microusd": billable_s * RATE // 3600,
        "on_demand_microusd": billable_s * 5 // 2 * RATE // 3600,
        "model_uri": f"s3://bucket/out/{number}/model.tar.gz",
    }
    return attempt(number, name, **final | changes)


def run(number_of_trial: int, number: int = 1, **changes: Any) -> Run:
    given: dict[str, Any] = {
        "started_at": later(100 * number),
        "ended_at": later(100 * number + 50),
        "end": RunEnd.ENDED,
        "had_checkpoint": False,
        "first_step": 1,
        "last_step": 10,
        "lost_work_s": 0.0,
    }
    return factories.run(number_of_trial, 1, number, **given | changes)


def seed(folder: Path, name: str = "digits", direction: str = "maximize", **changes: Any) -> Store:
    """Six trials: two succeeded (the first was interrupted at step 6 and resumed from 4), one pruned, one failed with a
    message that would colour a terminal, one in flight, one waiting."""
    store = Store.open(f"sqlite:///{folder / 'tuner.db'}")
    made = store.create_study(study(folder, name, direction, **changes))
    lease = store.acquire(made.id, factories.holder(4711), now=NOW, period_s=60, gone=lambda _: False)
    lease = store.renew(lease, now=later(5), period_s=60)
    store.commit(lease, _change(made, name), now=NOW)
    return store


def _change(made: Study, name: str) -> Change:
    state = TrialState
    return Change(
        study=(made, replace(made, version=made.version + 1)),
        new_trials=(
            trial(0, state.SUCCEEDED, name, values=(0.91,), last_value=0.91, last_step=10),
            trial(1, state.SUCCEEDED, name, values=(0.95,), last_value=0.95, last_step=10),
            trial(2, state.PRUNED, name, values=None, last_value=0.3, last_step=3, pruned_at_step=3),
            trial(3, state.FAILED, name, reason=f"script_error: {ESCAPE}"),
            trial(4, state.RUNNING, name, last_value=float("inf"), last_step=2),
            trial(5, state.BACKING_OFF, name, attempts=0),
        ),
        new_attempts=(
            ended(0, 600, name, interruptions=1),
            ended(1, 300, name),
            ended(2, 100, name, end=AttemptEnd.STOPPED),
            ended(3, 50, name, end=AttemptEnd.SCRIPT_ERROR, model_uri=None),
            attempt(4, name, estimated_microusd=1234),
        ),
        runs=(
            run(0, 1, end=RunEnd.INTERRUPTED, last_step=6, lost_work_s=12.5),
            run(0, 2, had_checkpoint=True, resume_step=4, resumed_from_step=4, first_step=5, restarted_from_zero=False),
            run(1),
            run(2, last_step=3),
        ),
        points=tuple(
            factories.point(0, step, value, name="val_accuracy", at=later(step))
            for step, value in ((1, 0.5), (2, float("nan")), (10, 0.91))
        ),
        events=(
            factories.event(1, "trial.propose", recorded_at=NOW, happened_at=NOW, trial=0, after="proposed"),
            factories.event(
                seq=2,
                kind="attempt.interrupt",
                recorded_at=later(50),
                happened_at=later(49),
                trial=0,
                attempt=1,
                before="training",
                after="interrupted",
            ),
            factories.event(
                seq=3,
                kind="refused",
                recorded_at=later(51),
                happened_at=later(51),
                trial=0,
                attempt=1,
                details={"message": ESCAPE},
            ),
            factories.event(
                seq=4,
                kind="trial.thawed",
                recorded_at=later(52),
                happened_at=later(52),
                trial=0,
                details={"by": "a newer version"},
            ),
        ),
    )
