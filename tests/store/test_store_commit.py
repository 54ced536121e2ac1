"""A change is written whole, under the fence, from the state that the caller saw, or not at all."""

from dataclasses import replace
from typing import Any

import pytest
from store_records import (
    ME,
    NOW,
    OTHER,
    Bench,
    attempt,
    bench,
    bump,
    ended,
    event,
    later,
    point,
    run,
    statements,
    study,
    trial,
)

from tuner.core.records import AttemptEnd, AttemptState, Change, Request, StudyState, TrialState
from tuner.store.store import LeaseLost, Store, StoreConflict


def everything(store: Store, study_id: int) -> list[Any]:
    return [
        store.study_by_id(study_id),
        store.trials(study_id),
        store.attempts(study_id),
        store.runs(study_id),
        store.points(study_id),
        store.events(study_id),
        store.pending_requests(study_id),
    ]


def test_one_change_writes_all_kinds_of_rows(desk: Bench) -> None:
    request = desk.store.add_request(desk.study.id, "set", {"budget.usd": 9}, "ann", NOW)
    desk.write(
        study=bump(desk.reload(), state=StudyState.DRAINING),
        new_trials=(trial(0),),
        new_attempts=(attempt(0),),
        runs=(run(0),),
        points=(point(0),),
        events=(event(1), event(2)),
        requests=(request,),
    )
    assert [len(x) for x in everything(desk.store, desk.study.id)[1:]] == [1, 1, 1, 1, 2, 0]
    assert desk.reload().state is StudyState.DRAINING


def test_a_guarded_change_moves_state_and_version(desk: Bench) -> None:
    desk.write(new_trials=(trial(0), trial(1)), new_attempts=(attempt(0), attempt(1)))
    desk.write(
        trials=(bump(trial(0), state=TrialState.BACKING_OFF, due_at=later(9)), bump(trial(1), faults=1, attempts=1)),
        attempts=(bump(attempt(1), state=AttemptState.INTERRUPTED, interruptions=3),),
    )
    first, second = desk.store.trials(desk.study.id)
    assert (first.state, first.version, first.due_at) == (TrialState.BACKING_OFF, 2, later(9))
    assert (second.state, second.version, second.faults) == (TrialState.RUNNING, 2, 1)
    assert [a.interruptions for a in desk.store.attempts(desk.study.id)] == [0, 3]


def test_one_change_may_move_a_row_twice(desk: Bench) -> None:
    desk.write(new_trials=(trial(0),))
    first = bump(trial(0), state=TrialState.PAUSED)
    desk.write(trials=(first, bump(first[1], state=TrialState.RUNNING)))
    assert desk.store.trials(desk.study.id)[0].version == 3


def test_the_next_attempt_may_come_with_the_end_of_the_last(desk: Bench) -> None:
    desk.write(new_trials=(trial(0),), new_attempts=(attempt(0, 1),))
    over = bump(attempt(0, 1), state=AttemptState.ENDED, end=AttemptEnd.CAPACITY, ended_at=later(1))
    desk.write(attempts=(over,), new_attempts=(attempt(0, 2),))
    assert [a.state for a in desk.store.attempts(desk.study.id)] == [AttemptState.ENDED, AttemptState.TRAINING]


@pytest.mark.parametrize(
    ("stale", "words"),
    [
        ({"version": 7}, r"trial 1 of study 1 was running, version 7, and is running, version 1"),
        ({"state": TrialState.PAUSED}, r"trial 1 of study 1 was paused, version 1, and is running, version 1"),
        ({"number": 5, "prefix": "s3://b/5/"}, r"trial 5 of study 1 was running, version 1, and is not there"),
    ],
)
def test_a_stale_trial_is_a_conflict_and_nothing_is_written(desk: Bench, stale: dict[str, Any], words: str) -> None:
    desk.write(new_trials=(trial(0), trial(1), trial(2)), new_attempts=(attempt(0),))
    before = everything(desk.store, desk.study.id)
    with pytest.raises(StoreConflict, match=words):
        desk.write(
            study=bump(desk.reload(), exhausted=True),
            new_trials=(trial(9),),
            trials=(bump(trial(0)), bump(replace(trial(1), **stale)), bump(trial(2))),
            attempts=(bump(attempt(0)),),
            points=(point(0),),
            events=(event(1),),
        )
    assert everything(desk.store, desk.study.id) == before


def test_a_stale_attempt_is_a_conflict(desk: Bench) -> None:
    desk.write(new_trials=(trial(0), trial(1)), new_attempts=(attempt(0), attempt(1)))
    with pytest.raises(StoreConflict, match=r"attempt 1/1 of study 1 was waiting, version 1, and is training"):
        desk.write(attempts=(bump(attempt(0)), bump(attempt(1, state=AttemptState.WAITING))))


def test_a_stale_study_is_a_conflict(desk: Bench) -> None:
    with pytest.raises(StoreConflict, match=r"study 1 of study 1 was running, version 4, and is running, version 1"):
        desk.write(study=bump(replace(desk.reload(), version=4)))


def test_a_guarded_update_never_matches_a_row_of_another_study(desk: Bench) -> None:
    other = bench(desk.store, "plain")
    desk.write(new_trials=(trial(0),))
    with pytest.raises(StoreConflict, match=r"trial 0 of study 2 .* is not there"):
        other.write(trials=(bump(trial(0)),))


@pytest.mark.parametrize(
    ("record", "changes"),
    [(trial(0), {"prefix": "s3://b/x/"}), (trial(0), {"params": {}}), (attempt(0), {"job_name": "x"})],
)
def test_a_fixed_column_cannot_be_changed(desk: Bench, record: Any, changes: dict[str, Any]) -> None:
    pair = bump(record, **changes)
    with pytest.raises(AssertionError, match="is fixed"):
        desk.write(**{"trials" if record == trial(0) else "attempts": (pair,)})


def test_a_skipped_version_is_a_bug(desk: Bench) -> None:
    with pytest.raises(AssertionError, match="versions go up by one"):
        desk.write(trials=((trial(0), replace(trial(0), version=3)),))


@pytest.mark.parametrize("seqs", [(2,), (1, 3), (1, 1), (0,)])
def test_events_are_numbered_without_gaps(desk: Bench, seqs: tuple[int, ...]) -> None:
    with pytest.raises(StoreConflict, match="its next event is 1"):
        desk.write(events=tuple(event(seq) for seq in seqs))
    assert desk.store.last_seq(desk.study.id) == 0


def test_each_study_numbers_its_own_events(desk: Bench) -> None:
    other = bench(desk.store, "plain")
    desk.write(events=(event(1), event(2)))
    other.write(events=(event(1),))
    desk.write(events=(event(3),))
    assert (desk.store.last_seq(desk.study.id), desk.store.last_seq(other.study.id)) == (3, 1)


def test_an_engine_that_lost_the_lease_writes_nothing(desk: Bench) -> None:
    desk.store.acquire(desk.study.id, OTHER, now=later(61), period_s=60, gone=lambda _: False)
    with pytest.raises(LeaseLost, match="study 1"):
        desk.write(new_trials=(trial(0),))
    assert desk.store.trials(desk.study.id) == []


def test_a_lease_that_was_given_back_writes_nothing(desk: Bench) -> None:
    desk.store.release(desk.lease)
    with pytest.raises(LeaseLost):
        desk.write(new_trials=(trial(0),))


def test_an_expired_lease_that_nobody_took_still_writes(desk: Bench) -> None:
    desk.store.commit(desk.lease, Change(new_trials=(trial(0),)), now=later(999))
    assert desk.store.trial_count(desk.study.id) == 1


def test_a_request_is_applied_once(desk: Bench) -> None:
    desk.store.add_request(desk.study.id, "stop", {"now": True}, "ann", later(1))
    second = desk.store.add_request(desk.study.id, "cancel", {}, "bob", later(2))
    expected = [
        Request(id=1, verb="stop", values={"now": True}, who="ann", at=later(1)),
        Request(id=2, verb="cancel", values={}, who="bob", at=later(2)),
    ]
    assert desk.store.pending_requests(desk.study.id) == expected
    desk.write(requests=(second,))
    assert desk.store.pending_requests(desk.study.id) == expected[:1]
    with pytest.raises(StoreConflict, match="applied already"):
        desk.write(requests=(second,))


def test_a_request_needs_no_lease(store: Store) -> None:
    made = store.create_study(study())
    store.acquire(made.id, ME, now=NOW, period_s=60, gone=lambda _: False)
    assert store.add_request(made.id, "stop", {}, "ann", NOW) in store.pending_requests(made.id)


@pytest.mark.parametrize("trials", [1, 50])
def test_statements_do_not_grow_with_the_trials(desk: Bench, trials: int) -> None:
    numbers = range(trials)
    desk.write(new_trials=tuple(map(trial, numbers)), new_attempts=tuple(map(attempt, numbers)))
    seen = statements(desk.store)
    desk.write(
        trials=tuple(bump(trial(n)) for n in numbers),
        attempts=tuple(bump(attempt(n)) for n in numbers),
        points=tuple(point(n) for n in numbers),
        events=tuple(event(n + 1) for n in numbers),
    )
    assert seen == ["begin", "SELECT", "UPDATE", "UPDATE", "INSERT", "INSERT"]
    seen.clear()
    assert len(desk.store.live(desk.study.id)) == trials
    desk.store.summary(desk.study.id)
    assert seen == ["begin", "SELECT", "SELECT", "SELECT"] * 2


def test_a_stale_observation_never_changes_an_ended_attempt(desk: Bench) -> None:
    desk.write(new_trials=(trial(0),), new_attempts=(ended(0),))
    with pytest.raises(StoreConflict, match=r"attempt 0/1 .* is ended"):
        desk.write(attempts=(bump(attempt(0)),))
