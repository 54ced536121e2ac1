"""Trials that train for nothing, in silence, or from a checkpoint that was passed over."""

from datetime import UTC, datetime, timedelta

import pytest
from checkers import broken, succeeded
from simulated import script_of

from tuner.model import Run, RunEnd, RunRecord, TrialState
from tuner.proof import runs_for_nothing, torn_step

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OFTEN = [(400.0 * n, 400.0 * n + 20) for n in range(1, 40)]
ONE = {"trials": 1, "training": {"max_run": "9h", "max_wait": "24h"}}


def run(number, end, attempt=1):
    """The n-th run lasts from n * 100 s to n * 100 + 50 s."""
    return Run(
        trial=0,
        attempt=attempt,
        number=number,
        started_at=NOW + timedelta(seconds=100 * number),
        ended_at=NOW + timedelta(seconds=100 * number + 50) if end else None,
        end=end,
    )


@pytest.mark.parametrize(
    ("ends", "taken", "saved", "expected"),
    [
        ([RunEnd.INTERRUPTED] * 3, [], None, 3),
        ([RunEnd.INTERRUPTED, RunEnd.RESTARTED, RunEnd.INTERRUPTED], [], None, 3),
        ([RunEnd.INTERRUPTED] * 3, [], 120, 2),  # saved in the first run
        ([RunEnd.INTERRUPTED] * 3, [], 320, 0),  # saved in the third
        ([RunEnd.INTERRUPTED] * 3 + [None], [], None, 3),  # what runs now may still save
        ([RunEnd.INTERRUPTED, RunEnd.ENDED], [], None, 1),  # its script or we ended it
        ([RunEnd.INTERRUPTED, RunEnd.ENDED], [1], None, 2),  # max_wait ended it
    ],
)
def test_runs_without_a_newer_checkpoint_are_counted(ends, taken, saved, expected):
    runs = [run(number, end) for number, end in enumerate(ends, start=1)]
    saved_at = None if saved is None else NOW + timedelta(seconds=saved)
    assert runs_for_nothing(runs, taken, saved_at) == expected


@pytest.mark.parametrize(("newest", "resumed", "torn"), [(None, None, None), (4, 4, None), (5, 4, 5), (3, None, 3)])
def test_a_checkpoint_was_passed_over_exactly_if_a_newer_one_lay_there(newest, resumed, torn):
    record = RunRecord(
        attempt=1,
        run="a",
        host="algo-1",
        started_at=NOW,
        resume_step=resumed,
        resume_saved_at=None,
        own_files=1,
        newest_step=newest,
    )
    assert torn_step(record) == torn


@pytest.mark.parametrize(
    "script",
    [
        script_of(epochs=20, step_s=60.0, checkpoint_every=0),  # never saves
        script_of(epochs=20, step_s=60.0, checkpoint_every=15),  # saves too rarely
        script_of(epochs=20, step_s=60.0, torn=True, checkpoint_every=3),  # what it saves is torn each time
        script_of(epochs=20, step_s=60.0, sync_stops_after=0),  # what it saves never arrives
    ],
)
def test_three_whole_runs_for_nothing_are_the_last(make_sweep, script):
    sweep = make_sweep(outages=OFTEN, script=script, changes=ONE)
    sweep.run()
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [(TrialState.FAILED, "no_progress")]
    (attempt,) = sweep.attempts()
    assert (attempt.stop_reason, attempt.interruptions) == ("no_progress", 3)
    assert broken(sweep) == []


def test_runs_for_nothing_are_counted_over_attempts(make_sweep):
    """Capacity is away for so long each time that `max_wait` ends the attempt."""
    outages = [(400.0 + 9000 * n, 8900.0 + 9000 * n) for n in range(8)]
    changes = {"trials": 1, "training": {"max_run": "1h", "max_wait": "65m"}}
    sweep = make_sweep(outages=outages, script=script_of(epochs=20, step_s=60.0, checkpoint_every=0), changes=changes)
    sweep.run()
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [(TrialState.FAILED, "no_progress")]
    assert sum(attempt.interruptions for attempt in sweep.attempts()) == 3
    assert len({run.attempt for run in sweep.store.runs(sweep.study.id)}) == 3


def test_a_run_that_max_wait_ends_is_a_whole_one(make_sweep):
    changes = {"trials": 1, "training": {"max_run": "1h", "max_wait": "65m"}}
    script = script_of(epochs=60, step_s=60.0, checkpoint_every=0)
    sweep = make_sweep(outages=[(400.0, 3000.0), (4400.0, 4500.0)], script=script, changes=changes)
    sweep.run()
    runs = sweep.store.runs(sweep.study.id)
    assert [(run.attempt, run.end) for run in runs] == [
        (1, RunEnd.INTERRUPTED),
        (1, RunEnd.ENDED),
        (2, RunEnd.INTERRUPTED),
    ]
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [(TrialState.FAILED, "no_progress")]


def test_a_trial_that_gets_on_is_interrupted_as_often_as_it_takes(make_sweep):
    sweep = make_sweep(outages=OFTEN, script=script_of(epochs=30, step_s=60.0), changes=ONE)
    sweep.run()
    assert succeeded(sweep) == [0]
    assert sweep.store.summary(sweep.study.id).interruptions > 3


def watched(sweep, seconds):
    """The warnings of the study, tick by tick, while it runs for so long."""
    engine, seen = sweep.engine(), []
    end = sweep.clock.now() + timedelta(seconds=seconds)
    active = True
    while active and sweep.clock.now() < end:
        active = engine.tick().active
        warnings = sweep.store.study_by_id(sweep.study.id).warnings
        if not seen or seen[-1] != warnings:
            seen.append(warnings)
        poll = sweep.clock.now() + timedelta(seconds=30)
        sweep.clock.wait(poll, due=poll)
    return seen


def test_a_sync_that_stops_is_told_once_and_forgotten_when_the_job_has_ended(make_sweep):
    script = script_of(epochs=40, step_s=60.0, sync_stops_after=5)
    sweep = make_sweep(script=script, changes={**ONE, "parallel": 1})
    none, silent, after = watched(sweep, 4000)
    assert none == after == ()
    assert len(silent) == 1
    assert "trial 0: it trains, but nothing new lies under its prefix since 00:0" in silent[0]
    assert sweep.kinds().count("warning") == 1


def test_steps_without_checkpoints_are_told(make_sweep):
    sweep = make_sweep(script=script_of(epochs=30, step_s=60.0, checkpoint_every=0), changes=ONE)
    none, unsaved, after = watched(sweep, 4000)
    assert none == after == ()
    assert "reports steps, but nothing was saved since" in unsaved[0]


def test_a_warning_comes_half_way_to_the_stop(make_sweep):
    changes = {"trials": 1, "training": {"stall_after": "10m", "max_run": "9h", "max_wait": "24h"}}
    sweep = make_sweep(script=script_of(epochs=6, step_s=60.0, hangs_after=3), changes=changes)
    watched(sweep, 2000)
    told = {event.kind: event for event in sweep.store.events(sweep.study.id)}
    between = told["stop.wanted"].recorded_at - told["warning"].recorded_at
    assert timedelta(minutes=4) < between < timedelta(minutes=6)
    assert "retried after 600 s of silence" in told["warning"].details["message"]


def test_a_torn_checkpoint_is_told_once_for_each_run_that_passes_it_over(make_sweep):
    outages = [(400.0, 420.0), (900.0, 920.0)]
    sweep = make_sweep(outages=outages, script=script_of(epochs=20, step_s=60.0, torn=True), changes=ONE)
    engine = sweep.engine()
    engine.run(lambda: len(sweep.store.runs(sweep.study.id)) > 1)
    sweep.run()  # by another engine, which reads every record again
    assert succeeded(sweep) == [0]
    torn = [event for event in sweep.store.events(sweep.study.id) if event.kind == "checkpoint.torn"]
    assert [event.details["step"] - event.details["used"] for event in torn] == [1, 1]
    assert broken(sweep) == []
