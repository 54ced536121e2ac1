"""Every record is read back as it was written."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import StatementError
from store_records import ME, NOW, Bench, attempt, ended, event, later, point, run, study, succeeded, trial

from tuner.core.records import NO_STEP, AttemptEnd, AttemptState, Change, RunEnd, StopReason, StudyState, TrialState
from tuner.store.store import Store


def test_a_study_round_trips(store: Store) -> None:
    made = store.create_study(
        study(attrs={"cma": [1.5, None]}, warnings=("slow", "new"), exhausted=True, local_dir="/s", last_tick_at=NOW)
    )
    assert made.id == 1
    assert store.study("digits") == store.study_by_id(1) == made
    assert store.studies() == [made]


def test_the_longest_names_fit(store: Store) -> None:
    """Servers enforce the lengths of columns; a key is the name plus seven letters."""
    name = "a" * 32
    made = store.create_study(study(name, key=f"{name}-bcdfgh"))
    lease = store.acquire(made.id, ME, now=NOW, period_s=60, gone=lambda _: False)
    job = f"{made.key}-00001-001"
    store.commit(lease, Change(new_trials=(trial(1),), new_attempts=(attempt(1, job_name=job),)), now=NOW)
    assert store.attempts(made.id)[0].job_name == job


@pytest.mark.parametrize("state", TrialState)
def test_a_trial_round_trips_in_every_state(desk: Bench, state: TrialState) -> None:
    full = trial(7, state=state, last_step=3, last_value=-0.25, judged_step=2, attempts=2, faults=1)
    if state.terminal:
        full = replace(full, finished_at=later(5), told_seq=9, reason="why")
    if state in (TrialState.SUCCEEDED, TrialState.PRUNED):
        full = replace(full, values=(0.1 + 0.2, -1e300), pruned_at_step=3)
    if state is TrialState.BACKING_OFF:
        full = replace(full, due_at=later(30))
    desk.write(new_trials=(full,))
    assert desk.store.trials(desk.study.id) == [full]


def test_an_attempt_round_trips_with_every_field(desk: Bench) -> None:
    full = ended(
        0,
        2,
        end=AttemptEnd.STOPPED,
        arn="arn:x",
        submitted_at=later(1),
        refusals=1,
        next_try_at=later(2),
        history_rows=5,
        observed_at=later(3),
        interruptions=2,
        restarts=1,
        stop_reason=StopReason.PRUNE,
        stop_wanted_at=later(4),
        stop_by=later(5),
        stop_sent_at=later(6),
        reason="AlgorithmError: boom",
        run_s=12.25,
        startup_s=3.5,
        upload_s=0.125,
        estimated_microusd=10**15,
        model_uri="s3://m/",
        spot=False,
        max_wait_s=None,
    )
    desk.write(new_trials=(trial(0),), new_attempts=(attempt(0, 1, state=AttemptState.SUBMITTING), full))
    assert desk.store.attempts(desk.study.id)[1] == full


def test_a_run_is_inserted_then_replaced(desk: Bench) -> None:
    first = run(0, 1, 1)
    desk.write(new_trials=(trial(0),), new_attempts=(attempt(0),), runs=(first,))
    assert desk.store.runs(desk.study.id) == [first]
    told = replace(
        first,
        ended_at=later(9),
        end=RunEnd.INTERRUPTED,
        run_id="r-1",
        had_checkpoint=True,
        resume_step=4,
        first_step=5,
        last_step=8,
        resumed_from_step=4,
        restarted_from_zero=False,
        lost_work_s=1.5,
    )
    desk.write(runs=(told,))
    assert desk.store.runs(desk.study.id) == [told]


def test_a_later_point_of_the_same_step_replaces_the_earlier(desk: Bench) -> None:
    again = point(0, 1, 0.7, attempt=2, run_id="r2", at=later(3))
    desk.write(new_trials=(trial(0),), points=(point(0, 1, 0.5), point(0, NO_STEP, 0.1), point(0, 1, 9.0, name="loss")))
    desk.write(points=(again,))
    assert desk.store.points(desk.study.id, name="accuracy") == [point(0, NO_STEP, 0.1), again]
    assert [p.value for p in desk.store.points(desk.study.id, trial=0)] == [0.1, 0.7, 9.0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_metric_values_keep_every_digit(desk: Bench, values: list[float]) -> None:
    if not desk.store.trial_count(desk.study.id):
        desk.write(new_trials=(trial(0),))
    desk.write(points=tuple(point(0, step, value) for step, value in enumerate(values)))
    read = [p.value for p in desk.store.points(desk.study.id)][: len(values)]
    assert [repr(v + 0.0) for v in read] == [repr(v + 0.0) for v in values]  # only SQLite loses the sign of zero


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_last_value_that_is_no_number_is_kept(desk: Bench, value: float) -> None:
    desk.write(new_trials=(trial(0, last_step=4, last_value=value), trial(1)))
    first, second = desk.store.trials(desk.study.id)
    assert (repr(first.last_value), first.last_step) == (repr(value), 4)
    assert second.last_value is None


def test_a_step_without_its_value_is_a_bug(desk: Bench) -> None:
    with pytest.raises(AssertionError, match="trial 0: a step without its value"):
        desk.write(new_trials=(trial(0, last_step=4),))


def test_numbers_that_json_lacks_are_refused(desk: Bench) -> None:
    with pytest.raises(StatementError, match="not JSON compliant"):
        desk.write(new_trials=(succeeded(0, math.inf),))
    assert desk.store.trial_count(desk.study.id) == 0


def test_times_come_back_aware_in_utc_to_the_microsecond(desk: Bench) -> None:
    kolkata = datetime(2026, 3, 1, 5, 30, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    desk.write(events=(event(1, happened_at=kolkata),))
    read = desk.store.events(desk.study.id)[0].happened_at
    assert read == kolkata
    assert read.isoformat() == "2026-03-01T00:00:00.000001+00:00"
    assert read.tzinfo is UTC


def test_a_naive_time_is_refused(desk: Bench) -> None:
    with pytest.raises(StatementError, match="has no time zone"):
        desk.write(events=(event(1, happened_at=datetime(2026, 3, 1)),))  # noqa: DTZ001 - the point


def test_foreign_text_never_stops_the_store(desk: Bench) -> None:
    torn = b"caf\xc3\xa9 \xff".decode("utf-8", "surrogateescape") + "\0"
    desk.write(
        new_trials=(trial(0, state=TrialState.FAILED, reason=torn, finished_at=NOW, told_seq=1),),
        events=(event(1, details={"line": torn}),),
    )
    assert desk.store.trials(desk.study.id)[0].reason == "café ??"
    assert desk.store.events(desk.study.id)[0].details == {"line": torn}


def test_a_changed_study_keeps_what_belongs_to_the_lease(desk: Bench) -> None:
    before = desk.reload()
    desk.lease = desk.store.renew(desk.lease, now=later(5), period_s=60)
    after = replace(before, version=before.version + 1, state=StudyState.DRAINING, attrs={"n": 1}, warnings=("w",))
    desk.write(study=(before, after))
    read = desk.reload()
    assert (read.state, read.attrs, read.warnings, read.version) == (StudyState.DRAINING, {"n": 1}, ("w",), 2)
    assert (read.fence, read.lease_expires_at, read.last_tick_at) == (1, later(65), later(5))
