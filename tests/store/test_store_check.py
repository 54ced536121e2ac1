"""A correct study has no findings, and each fault put into one is named."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.schema import DropConstraint
from store_records import NOW, Bench, attempt, bump, ended, event, later, succeeded, trial

from tuner.core.records import AttemptState, Event, TrialState
from tuner.store import tables
from tuner.store.check import check

LIVE_AGAIN = (
    "UPDATE tuner_attempts SET state = 'training', \"end\" = NULL, ended_at = NULL,"
    " spend_microusd = NULL, on_demand_microusd = NULL"
)


def story(number: int = 0, first: int = 1) -> list[Event]:
    """The events of a trial whose first attempt met no capacity, and whose second was interrupted and completed."""
    told = [
        ("trial.propose", None, None, "proposed"),
        ("attempt.submit", 1, None, "submitting"),
        ("trial.submit", None, "proposed", "running"),
        ("history", 1, None, None),
        ("attempt.wait", 1, "submitting", "waiting"),
        ("attempt.end", 1, "waiting", "ended"),
        ("trial.back_off", None, "running", "backing_off"),
        ("attempt.submit", 2, None, "submitting"),
        ("trial.submit", None, "backing_off", "running"),
        ("attempt.train", 2, "submitting", "training"),
        ("attempt.interrupt", 2, "training", "interrupted"),
        ("history", 2, None, None),
        ("attempt.train", 2, "interrupted", "training"),
        ("history", 2, None, None),
        ("attempt.end", 2, "training", "ended"),
        ("trial.succeed", None, "running", "succeeded"),
        ("rate.changed", None, None, None),
    ]
    return [
        event(seq, kind, trial=number, attempt=of, before=before, after=after, recorded_at=later(seq), happened_at=NOW)
        for seq, (kind, of, before, after) in enumerate(told, start=first)
    ]


def record(desk: Bench, events: list[Event]) -> None:
    desk.write(
        new_trials=(succeeded(0, attempts=2),),
        new_attempts=(ended(0, 1, billable_s=None, spend_microusd=0, on_demand_microusd=0), ended(0, 2)),
        events=tuple(events),
    )


def findings(desk: Bench) -> list[str]:
    return check(desk.store, desk.study.id)


def test_a_story_that_holds_has_no_findings(desk: Bench) -> None:
    record(desk, story())
    desk.write(
        new_trials=(trial(1, state=TrialState.PROPOSED),),
        events=(replace(story()[0], seq=18, trial=1, recorded_at=later(30)),),
    )
    assert findings(desk) == []


def test_an_empty_study_has_no_findings(desk: Bench) -> None:
    assert findings(desk) == []


def told(seq: int, **changes: Any) -> Callable[[list[Event]], None]:
    def tell(events: list[Event]) -> None:
        events[seq - 1] = replace(events[seq - 1], **changes)

    return tell


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (
            told(7, after="succeeded"),
            "event 7 (trial.back_off, trial 0): it says running → succeeded, and is running → backing_off",
        ),
        (
            told(16, kind="trial.pause"),
            "event 16 (trial.pause, trial 0): it says running → succeeded, and is running → paused",
        ),
        (told(3, kind="trial.propose"), "event 3 (trial.propose, trial 0): it was proposed already"),
        (told(1, kind="note"), "event 3 (trial.submit, trial 0): it was never proposed"),
        (told(2, kind="note"), "event 5 (attempt.wait, trial 0 attempt 1): it was never submitted"),
        (
            told(10, before="waiting"),
            "event 10 (attempt.train, trial 0 attempt 2): it says waiting → training, and is submitting → training",
        ),
        (
            told(5, kind="attempt.restart"),
            "event 5 (attempt.restart, trial 0 attempt 1): an attempt that is submitting cannot restart",
        ),
        (
            told(17, kind="trial.fail", before="succeeded", after="failed"),
            "event 17 (trial.fail, trial 0): a trial that is succeeded cannot fail",
        ),
        (
            told(17, kind="attempt.train", attempt=2, before="ended", after="training"),
            "event 17 (attempt.train, trial 0 attempt 2): an attempt that is ended cannot train",
        ),
        (told(17, kind="trial.vanish"), "event 17 (trial.vanish, trial 0): 'vanish' is not a valid TrialEvent"),
        (told(17, kind="trial.fail", trial=None), "event 17 (trial.fail, trial None): it names no trial"),
        (told(16, kind="note"), "trial 0: its events end in running, its row is succeeded"),
        (told(15, kind="note"), "trial 0 attempt 2: its events end in training, its row is ended"),
        (
            told(17, kind="trial.propose", trial=4, after="proposed"),
            "trial 4: its events end in proposed, its row is missing",
        ),
        (told(5, recorded_at=NOW), "event 5 was recorded before event 4"),
        (told(14, happened_at=NOW - timedelta(seconds=1)), "event 14 (trial 0 attempt 2): its history runs back"),
    ],
)
def test_an_event_that_lies_is_found(desk: Bench, fault: Callable[[list[Event]], None], finding: str) -> None:
    events = story()
    fault(events)
    record(desk, events)
    assert finding in findings(desk)


def test_the_histories_of_two_attempts_have_clocks_of_their_own(desk: Bench) -> None:
    events = story()
    told(4, happened_at=later(999))(events)
    record(desk, events)
    assert findings(desk) == []


def ignore_checks(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.execute(sa.text("PRAGMA ignore_check_constraints = ON"))
        return
    for table in tables.metadata.tables.values():
        for constraint in table.constraints:
            if isinstance(constraint, sa.CheckConstraint):
                connection.execute(DropConstraint(constraint))


@pytest.mark.parametrize(
    ("sql", "finding"),
    [
        (
            "UPDATE tuner_attempts SET spend_microusd = 234668 WHERE number = 2",
            "trial 0 attempt 2: 234668 µ$ are booked, 600 s at its rate are 234667 µ$",
        ),
        ("UPDATE tuner_trials SET state = 'pruned'", "trial 0: its events end in succeeded, its row is pruned"),
        (
            "DELETE FROM tuner_attempts WHERE number = 1",
            "trial 0 attempt 1: its events end in ended, its row is missing",
        ),
        ("DELETE FROM tuner_events WHERE seq = 4", "event 4 is missing"),
        (f"{LIVE_AGAIN} WHERE number = 2", "trial 0 has ended, and its attempt 2 is training"),
        (f"{LIVE_AGAIN} WHERE number = 1", "trial 0: attempt 1 is live beside attempt 2"),
        ("UPDATE tuner_trials SET prefix = 's3://b/x'", "trial 0: its prefix s3://b/x does not end in a slash"),
    ],
)
def test_a_row_that_was_tampered_with_is_found(desk: Bench, sql: str, finding: str) -> None:
    record(desk, story())
    with desk.store._writer.begin() as connection:
        ignore_checks(connection)
        connection.execute(sa.text(sql))
    assert finding in findings(desk)


def test_a_prefix_inside_another_is_found(desk: Bench) -> None:
    outer, inner = trial(0, prefix="s3://b/1/"), trial(1, prefix="s3://b/1/0/")
    apart = trial(2, prefix="s3://b/10/")
    desk.write(new_trials=(outer, inner, apart))
    assert [line for line in findings(desk) if "share" in line] == ["trials 0 and 1 share the prefix s3://b/1/"]


def test_an_engine_at_work_is_no_fault(desk: Bench) -> None:
    """A change that is committed between two reads of the check makes it read again."""
    record(desk, story())
    live = attempt(1, state=AttemptState.SUBMITTING)
    proposed, submitted, taken = (replace(e, trial=1) for e in story(1, 18)[:3])
    desk.write(new_trials=(trial(1, state=TrialState.PROPOSED),), events=(proposed,))
    pair = bump(trial(1, state=TrialState.PROPOSED), state=TrialState.RUNNING)
    changes = [{"trials": (pair,), "new_attempts": (live,), "events": (submitted, taken)}]

    def between(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if changes and "FROM tuner_attempts" in statement:
            desk.write(**changes.pop())

    sa.event.listen(desk.store._engine, "after_cursor_execute", between)
    assert findings(desk) == []
