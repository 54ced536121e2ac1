"""Records of the study of these tests, and a store with that study under a lease."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tests import factories
from tests.factories import holder
from tuner.core.records import (
    Attempt,
    AttemptEnd,
    AttemptState,
    Change,
    Event,
    Lease,
    Point,
    Run,
    Study,
    Trial,
    TrialState,
)
from tuner.store.store import Store

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ME = holder(11, boot_id="b1")
OTHER = holder(22, host="there", boot_id="b2")


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def study(name: str = "digits", **changes: Any) -> Study:
    return factories.study(name, **{"version": 1, "created_at": NOW, **changes})


def trial(number: int = 0, **changes: Any) -> Trial:
    """With values of every kind among its parameters and attributes."""
    given = {
        "version": 1,
        "params": {"lr": 0.1, "layers": 3, "act": "relu", "flag": True, "none": None},
        "attrs": {"deep": [1, {"a": 2.5}]},
        "created_at": NOW,
    }
    return factories.trial(number, **given | changes)


def succeeded(number: int = 0, *values: float, **changes: Any) -> Trial:
    ended: dict[str, Any] = {"state": TrialState.SUCCEEDED, "finished_at": later(60), "told_seq": 2}
    return trial(number, **ended | {"values": values or (0.9,)} | changes)


def attempt(trial: int = 0, number: int = 1, **changes: Any) -> Attempt:
    return factories.attempt(trial, number, **{"version": 1, "created_at": NOW, **changes})


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
    return factories.run(trial, attempt, number, **{"started_at": NOW, **changes})


def point(trial: int = 0, step: int = 1, value: float = 0.5, **changes: Any) -> Point:
    return factories.point(trial, step, value, **{"at": NOW, **changes})


def event(seq: int, kind: str = "note", **changes: Any) -> Event:
    return factories.event(seq, kind, **{"recorded_at": NOW, "happened_at": NOW, **changes})


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
