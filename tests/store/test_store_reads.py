"""The reads of the engine and the views."""

import pytest
import sqlalchemy as sa
from store_records import NOW, Bench, attempt, bench, bump, ended, event, point, run, study, succeeded, trial

from tuner.core.records import AttemptEnd, Pool, PoolTotals, RunEnd, Summary, TrialState
from tuner.store.store import Store, StudyExists, StudyNotFound


def test_a_name_is_taken_once(store: Store) -> None:
    store.create_study(study())
    with pytest.raises(StudyExists, match=r"study 'digits' exists in \w+(\+psycopg)?://"):
        store.create_study(study(key="other"))
    assert len(store.studies()) == 1


def test_an_unknown_name_hints_at_the_nearest(store: Store) -> None:
    with pytest.raises(StudyNotFound, match=r"no study 'digit' in .*; the store has none yet"):
        store.study("digit")
    for name in ("digits", "plain", "wide"):
        store.create_study(study(name))
    with pytest.raises(StudyNotFound, match=r"; there are: digits$"):
        store.study("digit")
    with pytest.raises(StudyNotFound, match=r"; there are: digits, plain, wide$"):
        store.study("zzz")
    with pytest.raises(StudyNotFound, match="no study with id 9"):
        store.study_by_id(9)


def test_live_returns_unfinished_trials_with_their_attempts_and_runs(desk: Bench) -> None:
    other = bench(desk.store, "plain")
    other.write(new_trials=(trial(0, prefix="s3://b/plain/0/"),), new_attempts=(attempt(0, job_name="other"),))
    waiting = trial(2, state=TrialState.BACKING_OFF)
    lost = ended(2, 1, end=AttemptEnd.CAPACITY)
    desk.write(
        new_trials=(succeeded(0), trial(1), waiting, trial(3, state=TrialState.PROPOSED)),
        new_attempts=(ended(0), attempt(1), lost, attempt(2, 2)),
        runs=(run(0), run(2, 1, 1), run(2, 1, 2), run(2, 2, 1)),
    )
    assert desk.store.live(desk.study.id) == [
        (trial(1), (attempt(1),), ()),
        (waiting, (lost, attempt(2, 2)), (run(2, 1, 1), run(2, 1, 2), run(2, 2, 1))),
        (trial(3, state=TrialState.PROPOSED), (), ()),
    ]
    assert [t.number for t, _, _ in desk.store.live(other.study.id)] == [0]


def test_rows_are_chosen_and_ordered(desk: Bench) -> None:
    desk.write(
        new_trials=(trial(11), trial(2), trial(0)),
        new_attempts=(ended(2, 1), attempt(2, 2), attempt(0, 1)),
        runs=(run(2, 2, 1), run(2, 1, 2), run(2, 1, 1), run(0, 1, 1)),
        points=(point(2, 10), point(2, 9), point(0, 5), point(2, 9, name="loss")),
        events=tuple(event(n, trial=n % 2) for n in range(1, 7)),
    )
    store, study_id = desk.store, desk.study.id
    assert [t.number for t in store.trials(study_id)] == [0, 2, 11]
    assert [t.number for t in store.trials(study_id, numbers=[11, 0, 99])] == [0, 11]
    assert store.trials(study_id, numbers=[]) == []
    assert [(a.trial, a.number) for a in store.attempts(study_id)] == [(0, 1), (2, 1), (2, 2)]
    assert [a.number for a in store.attempts(study_id, trial=2)] == [1, 2]
    assert [(r.trial, r.attempt, r.number) for r in store.runs(study_id)] == [
        (0, 1, 1),
        (2, 1, 1),
        (2, 1, 2),
        (2, 2, 1),
    ]
    assert [r.trial for r in store.runs(study_id, trial=0)] == [0]
    assert [(p.trial, p.step) for p in store.points(study_id, name="accuracy")] == [(0, 5), (2, 9), (2, 10)]
    assert [(p.step, p.name) for p in store.points(study_id, trial=2)] == [
        (9, "accuracy"),
        (9, "loss"),
        (10, "accuracy"),
    ]
    assert [e.seq for e in store.events(study_id, trial=1)] == [1, 3, 5]
    assert [e.seq for e in store.events(study_id, after_seq=2, limit=3)] == [3, 4, 5]
    assert (store.trial_count(study_id), store.last_seq(study_id)) == (3, 6)


def test_the_best_come_first_in_either_direction(desk: Bench) -> None:
    values = [0.5, 0.9, -3.0, 0.9]
    desk.write(
        new_trials=(
            *(succeeded(n, value) for n, value in enumerate(values)),
            succeeded(4, 99.0, state=TrialState.PRUNED),  # the value of a pruned trial is no result
            trial(5, last_step=1, last_value=100.0),
        )
    )
    assert [t.number for t in desk.store.best(desk.study.id, maximize=True, limit=3)] == [1, 3, 0]
    assert [t.number for t in desk.store.best(desk.study.id, maximize=False)] == [2]


def test_the_summary_of_an_empty_study_is_all_zero(desk: Bench) -> None:
    empty = desk.store.summary(desk.study.id)
    assert empty.trials == dict.fromkeys(TrialState, 0)
    assert not any(getattr(empty, name) for name in Summary.__dataclass_fields__ if name != "trials")


def test_unknown_lost_work_is_not_zero(desk: Bench) -> None:
    cut = {"ended_at": NOW, "end": RunEnd.INTERRUPTED}
    desk.write(new_trials=(trial(0),), new_attempts=(attempt(0),), runs=(run(0, **cut), run(0, 1, 2)))
    summary = desk.store.summary(desk.study.id)
    assert (summary.lost_work_s, summary.lost_work_unknown_runs) == (None, 1)
    desk.write(runs=(run(0, **cut, lost_work_s=0.0), run(0, 1, 2, ended_at=NOW, end=RunEnd.RESTARTED)))
    summary = desk.store.summary(desk.study.id)
    assert (summary.lost_work_s, summary.lost_work_unknown_runs) == (0.0, 1)


def test_the_summary_counts_and_sums_one_study_alone(desk: Bench) -> None:
    other = bench(desk.store, "plain")
    other.write(new_trials=(trial(0, prefix="s3://b/p/"),), new_attempts=(ended(0, job_name="other"),), runs=(run(0),))
    desk.write(
        new_trials=(succeeded(0), trial(1), trial(2, state=TrialState.PAUSED)),
        new_attempts=(
            ended(0, 1, interruptions=2, estimated_microusd=77),
            attempt(1, 1, interruptions=1, estimated_microusd=5, reserved_microusd=100),
            # ended without its final figure: the reservation stays
            ended(2, 1, spend_microusd=None, on_demand_microusd=None, reserved_microusd=30, estimated_microusd=4),
            ended(2, 2, spend_microusd=1, on_demand_microusd=2),
        ),
        runs=(
            run(0, 1, 1, had_checkpoint=False, ended_at=NOW, end=RunEnd.INTERRUPTED, lost_work_s=2.5),
            run(0, 1, 2, had_checkpoint=True, resume_step=4, resumed_from_step=4, first_step=5, lost_work_s=0.25),
            run(0, 1, 3, had_checkpoint=True, restarted_from_zero=True),
            run(1, 1, 1, had_checkpoint=None),
            run(1, 1, 2, had_checkpoint=True, resume_step=9, resumed_from_step=2, first_step=3),
            run(2, 1, 1, had_checkpoint=False),
            run(2, 2, 1, had_checkpoint=False),  # the previous run left nothing
            run(2, 2, 2, had_checkpoint=True, ended_at=NOW, end=RunEnd.INTERRUPTED),
            run(2, 2, 3, had_checkpoint=True, ended_at=NOW, end=RunEnd.ENDED),
            run(2, 2, 4, had_checkpoint=True),  # it may still report a step
            run(1, 1, 3, had_checkpoint=True, ended_at=NOW, end=RunEnd.INTERRUPTED),  # cut before its first step
        ),
    )
    counts = dict.fromkeys(TrialState, 0)
    assert desk.store.summary(desk.study.id) == Summary(
        trials=counts | {TrialState.SUCCEEDED: 1, TrialState.RUNNING: 1, TrialState.PAUSED: 1},
        attempts=4,
        live_attempts=1,
        interruptions=3,
        runs=11,
        resumed_runs=2,
        resumed_from_older=1,
        restarted_from_zero=1,
        unproven_runs=2,
        never_checkpointed=1,
        spend_microusd=234_668,
        on_demand_microusd=391_113,
        estimated_microusd=9,
        reserved_microusd=130,
        lost_work_s=2.75,
        lost_work_unknown_runs=2,
    )


def test_each_read_is_of_one_moment(desk: Bench) -> None:
    """A commit between two statements of a read is visible to both or to neither."""
    desk.write(new_trials=(trial(0),), new_attempts=(attempt(0),))
    store, study_id = desk.store, desk.study.id
    writes = [bump(attempt(0), interruptions=1)]

    def after_trials(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if writes and "FROM tuner_trials" in statement:
            desk.write(attempts=(writes.pop(),))

    sa.event.listen(store._engine, "after_cursor_execute", after_trials)
    [(_, (seen,), _)] = store.live(study_id)
    assert seen.interruptions == 0
    [(_, (seen,), _)] = store.live(study_id)
    assert seen.interruptions == 1


def test_pool_totals_are_summed_over_studies(desk: Bench) -> None:
    """Attempts without a job do not count; each zone is its own pool."""
    other = bench(desk.store, "plain")
    met = {"submitted_at": NOW, "run_s": 100.0, "startup_s": 10.0, "interruptions": 2, "instance_type": "ml.x.large"}
    other.write(
        new_trials=(trial(0, prefix="s3://b/plain/0/"),),
        new_attempts=(ended(0, job_name="other", zone="z1", **met),),
    )
    desk.write(
        new_trials=(succeeded(0), trial(1), trial(2)),
        new_attempts=(
            ended(0, **met),
            attempt(1, **met),
            attempt(2, submitted_at=None, instance_type="ml.x.large"),
        ),
    )
    here, both = [desk.study.id], [desk.study.id, other.study.id]
    pool, zone = Pool("ml.x.large", spot=True), Pool("ml.x.large", spot=True, zone="z1")
    once = PoolTotals(attempts=1, interruptions=2, up_s=100.0, wait_s=10.0)
    assert desk.store.pool_totals(here) == {pool: once + once + PoolTotals(live=1)}
    assert desk.store.pool_totals(both, ended=True) == {pool: once, zone: once}
    assert desk.store.pool_totals([]) == {}


def test_the_largest_spot_ratio_counts_only_informative_bills(desk: Bench) -> None:
    store, study_id = desk.store, desk.study.id
    assert store.largest_spot_ratio(study_id, trained_s=60) is None
    figures = [(30, 100, True), (50, 100, True), (100, 100, True), (55, 59, True), (90, 100, False)]
    desk.write(
        new_trials=tuple(trial(n) for n in range(len(figures))),
        new_attempts=tuple(
            ended(n, 1, billable_s=billable_s, training_s=training_s, spot=spot, max_wait_s=7200 if spot else None)
            for n, (billable_s, training_s, spot) in enumerate(figures)
        ),
    )
    assert store.largest_spot_ratio(study_id, trained_s=60) == 0.5
