"""One builder per record, with defaults that make a legal row; and a store with one study under a lease."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tuner.core.records import (
    Attempt,
    AttemptEnd,
    AttemptState,
    Change,
    Event,
    Holder,
    Intent,
    Lease,
    Point,
    Run,
    Study,
    StudyState,
    Trial,
    TrialState,
)
from tuner.store.store import Store

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ME = Holder(host="here", boot_id="b1", pid=11, started="100")
OTHER = Holder(host="there", boot_id="b2", pid=22, started="200")


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def study(name: str = "digits", **changes: Any) -> Study:
    given: dict[str, Any] = {
        "id": 0,
        "name": name,
        "key": f"k-{name}",
        "owner": "ann",
        "state": StudyState.RUNNING,
        "version": 1,
        "spec": "{}",
        "backend": "local",
        "bundle_uri": "s3://b/code/",
        "local_dir": None,
        "intent": Intent.RUN,
        "intent_at": NOW,
        "created_at": NOW,
    }
    return Study(**given | changes)


def trial(number: int = 0, **changes: Any) -> Trial:
    given: dict[str, Any] = {
        "number": number,
        "state": TrialState.RUNNING,
        "version": 1,
        "params": {"lr": 0.1, "layers": 3, "act": "relu", "flag": True, "none": None},
        "distributions": "{}",
        "attrs": {"deep": [1, {"a": 2.5}]},
        "prefix": f"s3://b/digits/{number:05d}/",
        "bundle_uri": "s3://b/code/",
        "asked_seq": 1,
        "created_at": NOW,
    }
    return Trial(**given | changes)


def succeeded(number: int = 0, *values: float, **changes: Any) -> Trial:
    ended: dict[str, Any] = {"state": TrialState.SUCCEEDED, "finished_at": later(60), "told_seq": 2}
    return trial(number, **ended | {"values": values or (0.9,)} | changes)


def attempt(trial: int = 0, number: int = 1, **changes: Any) -> Attempt:
    given: dict[str, Any] = {
        "trial": trial,
        "number": number,
        "state": AttemptState.TRAINING,
        "version": 1,
        "job_name": f"k-digits-{trial:05d}-{number:03d}",
        "digest": "d" * 64,
        "instance_type": "ml.g5.xlarge",
        "instance_count": 1,
        "spot": True,
        "rate_microusd_per_h": 1_408_000,
        "max_run_s": 3600,
        "max_wait_s": 7200,
        "reserved_microusd": 2_000_000,
        "created_at": NOW,
    }
    return Attempt(**given | changes)


def ended(trial: int = 0, number: int = 1, **changes: Any) -> Attempt:
    """Completed after 600 billed seconds of 1,000 trained: 600 * 1.408 $/h / 3600."""
    final: dict[str, Any] = {
        "state": AttemptState.ENDED,
        "end": AttemptEnd.COMPLETED,
        "ended_at": later(60),
        "training_s": 1000,
        "billable_s": 600,
        "spend_microusd": 234_667,
        "on_demand_microusd": 391_111,
    }
    return attempt(trial, number, **final | changes)


def run(trial: int = 0, attempt: int = 1, number: int = 1, **changes: Any) -> Run:
    given: dict[str, Any] = {"trial": trial, "attempt": attempt, "number": number, "started_at": NOW}
    return Run(**given | changes)


def point(trial: int = 0, step: int = 1, value: float = 0.5, **changes: Any) -> Point:
    given: dict[str, Any] = {"name": "accuracy", "attempt": 1, "run_id": "r1", "at": NOW}
    return Point(trial=trial, step=step, value=value, **given | changes)


def event(seq: int, kind: str = "note", **changes: Any) -> Event:
    given: dict[str, Any] = {"recorded_at": NOW, "happened_at": NOW}
    return Event(seq=seq, kind=kind, **given | changes)


@dataclass
class Bench:
    """A store with one study under a lease, and short ways to write to it."""

    store: Store
    study: Study
    lease: Lease

    def write(self, **parts: Any) -> None:
        self.store.commit(self.lease, Change(**parts), now=NOW)

    def reload(self) -> Study:
        return self.store.study_by_id(self.study.id)


def bench(store: Store, name: str = "digits") -> Bench:
    made = store.create_study(study(name))
    lease = store.acquire(made.id, ME, now=NOW, period_s=60, gone=lambda _: False)
    return Bench(store, made, lease)


def statements(store: Store) -> list[str]:
    """The first words of each statement that reaches the database from now on; transactions start with `begin`."""
    seen: list[str] = []

    def statement(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if not text.startswith("BEGIN"):  # SQLite receives it as a statement, PostgreSQL's driver sends it itself
            seen.append(text.split(maxsplit=1)[0])

    sa.event.listen(store._engine, "begin", lambda _connection: seen.append("begin"))
    sa.event.listen(store._engine, "before_cursor_execute", statement)
    return seen


def bump(record: Any, **changes: Any) -> tuple[Any, Any]:
    """A guarded pair: before, and after with the next version."""
    return record, replace(record, version=record.version + 1, **changes)
