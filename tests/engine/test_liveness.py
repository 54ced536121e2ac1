"""Trials that train for nothing, in silence, or from a checkpoint that was passed over."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from checkers import broken, succeeded
from simulated import script_of

from tests import factories
from tuner.core.policy.proof import runs_without_progress, torn_step
from tuner.core.records import RunEnd, TrialState
from tuner.reports.events import narrate

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OFTEN = [(400.0 * n, 400.0 * n + 20) for n in range(1, 40)]
ONE = {"trials": 1, "training": {"max_run": "9h", "max_wait": "24h"}}


def run(number, end, attempt=1):
    """The n-th run lasts from n * 100 s to n * 100 + 50 s."""
    started_at = NOW + timedelta(seconds=100 * number)
    ended_at = started_at + timedelta(seconds=50) if end else None
    return factories.run(0, attempt, number, started_at=started_at, ended_at=ended_at, end=end)


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
    assert runs_without_progress(runs, taken, saved_at) == expected


OVER = {"restarted_from_zero": True}


def went_on(step):
    return {"resumed_from_step": step}


@pytest.mark.parametrize(
    ("proofs", "expected"),
    [
        ([{}, OVER, OVER, OVER], 3),  # each wrote its files again
        ([{}, OVER, OVER, went_on(4)], 0),  # in the end one of them was of use
        ([{}, OVER, {}, OVER], 1),  # of the third one nothing is known
        ([{}, went_on(5), went_on(5), went_on(5), went_on(5)], 0),  # the last one may have got on
        ([{}, went_on(5), went_on(5), OVER], 3),
        ([{}, went_on(5), went_on(6), OVER], 2),
        ([{}, went_on(5), went_on(6), went_on(7)], 0),
    ],
)
def test_a_newer_file_is_no_progress_where_runs_start_over(proofs, expected):
    runs = [replace(run(number, RunEnd.INTERRUPTED), **each) for number, each in enumerate(proofs, start=1)]
    assert runs_without_progress(runs, [], NOW + timedelta(days=1)) == expected


@pytest.mark.parametrize(("newest", "resumed", "torn"), [(None, None, None), (4, 4, None), (5, 4, 5), (3, None, 3)])
def test_a_checkpoint_was_passed_over_exactly_if_a_newer_one_lay_there(newest, resumed, torn):
    record = factories.run_record(resume_step=resumed, own_files=1, newest_step=newest)
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


@pytest.mark.parametrize("manifests", [True, False])
def test_a_script_that_starts_over_each_time_is_ended(make_sweep, manifests):
    """Each run writes its files again, and without manifests any file counts as newer."""
    outages = [(1000.0 + 700 * n, 1020.0 + 700 * n) for n in range(40)]
    script = script_of(epochs=20, step_s=60.0, manifests=manifests, resumes=False)
    sweep = make_sweep(outages=outages, script=script, changes=ONE)
    sweep.run()
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [(TrialState.FAILED, "no_progress")]
    assert sweep.store.summary(sweep.study.id).interruptions == 4  # the first one, and three for nothing
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


def test_steps_without_checkpoints_are_told_however_often_capacity_is_taken(make_sweep):
    """Runs of less than ten minutes, and none of them saves."""
    outages = [(600.0 * n, 600.0 * n + 20) for n in range(1, 40)]
    sweep = make_sweep(outages=outages, script=script_of(epochs=30, step_s=60.0, checkpoint_every=0), changes=ONE)
    seen = watched(sweep, 1750)
    assert len(sweep.store.runs(sweep.study.id)) == 3
    told = [event for event in sweep.store.events(sweep.study.id) if event.kind == "warning"]
    assert len(told) == 1
    assert "reports steps, but nothing was saved since 00:0" in told[0].details["message"]
    assert seen[-1] == (told[0].details["message"],)  # it lasts over interruptions


@pytest.mark.parametrize("every", [0, 1])
def test_nothing_is_promised_when_capacity_is_taken_and_what_was_lost_is_told(make_sweep, every):
    sweep = make_sweep(outages=[(400.0, 500.0)], script=script_of(step_s=60.0, checkpoint_every=every), changes=ONE)
    sweep.run()
    lines = [line.text for line in narrate(sweep.store.events(sweep.study.id))]
    taken = next(index for index, line in enumerate(lines) if "capacity was taken" in line)
    assert lines[taken] == "capacity was taken from trial 0; its job waits for it"
    (lost_s,) = (run.lost_work_s for run in sweep.store.runs(sweep.study.id) if run.number == 1)
    line = f"trial 0 started from the beginning (attempt 1, run 2): no usable checkpoint was saved, {lost_s:.0f} s"
    assert [text for text in lines if "from the beginning" in text] == ([] if every else [f"{line} of work lost"])
    assert broken(sweep) == []


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


# --- silence is measured by the engine's own looks

IMPATIENT = {
    "trials": 2,
    "capacity": {"max_faults": 0},
    "training": {"stall_after": "10m", "max_run": "9h", "max_wait": "24h"},
}


class Skewed:
    """The clock of an engine's machine that is set forward."""

    def __init__(self, true) -> None:
        self.true, self.ahead = true, timedelta(0)

    def now(self):
        return self.true.now() + self.ahead

    def elapsed_s(self):
        return self.true.elapsed_s()

    def wait(self, until, *, due=None):
        self.true.wait(until - self.ahead, due=None if due is None else due - self.ahead)


def drive(sweep, engine, seconds):
    until = sweep.clock.now() + timedelta(seconds=seconds)
    engine.run(lambda: sweep.clock.now() >= until)


def test_jobs_are_not_stopped_for_what_happened_while_the_bucket_could_not_be_read(make_sweep):
    """A laptop wakes after longer than `stall_after`, and its network comes after it."""
    sweep = make_sweep(script=script_of(epochs=40, step_s=60.0), changes=IMPATIENT)
    engine = sweep.engine()
    drive(sweep, engine, 400)
    sweep.clock.wait(sweep.clock.now() + timedelta(minutes=20), due=sweep.clock.now())
    for _ in range(8):
        sweep.cloud.fail_next("read", OSError("no network yet"))
    sweep.engine().run(lambda: False)
    assert succeeded(sweep) == [0, 1]
    assert [attempt.stop_reason for attempt in sweep.attempts()] == [None, None]


def test_jobs_are_not_stopped_while_the_bucket_cannot_be_read_at_all(make_sweep):
    sweep = make_sweep(script=script_of(epochs=40, step_s=60.0), changes=IMPATIENT)
    engine = sweep.engine()
    drive(sweep, engine, 400)
    read, until = engine._progress.read, sweep.clock.now() + timedelta(minutes=20)

    def unreachable(prefix):
        if sweep.clock.now() < until:
            raise OSError("the bucket is away")
        return read(prefix)

    engine._progress.read = unreachable
    engine.run(lambda: False)
    assert succeeded(sweep) == [0, 1]
    assert [attempt.stop_reason for attempt in sweep.attempts()] == [None, None]


@pytest.mark.parametrize("ahead", [timedelta(minutes=2), timedelta(minutes=40)])
def test_a_clock_that_was_set_forward_stops_no_job(make_sweep, ahead):
    sweep = make_sweep(script=script_of(epochs=20, step_s=170.0), changes=IMPATIENT)
    engine = sweep.engine()
    clock = Skewed(sweep.clock)
    engine._services = replace(engine._services, clock=clock)
    drive(sweep, engine, 800)
    clock.ahead = ahead  # from now on all that the containers write is so long ago
    engine.run(lambda: False)
    assert succeeded(sweep) == [0, 1]
    assert [attempt.stop_reason for attempt in sweep.attempts()] == [None, None]


def test_a_hang_is_found_though_the_engine_was_away(make_sweep):
    changes = {"trials": 1, "training": {"stall_after": "10m", "max_run": "9h", "max_wait": "24h"}}
    sweep = make_sweep(script=script_of(epochs=6, step_s=60.0, hangs_after=3), changes=changes)
    drive(sweep, sweep.engine(), 400)
    sweep.clock.wait(sweep.clock.now() + timedelta(hours=1), due=sweep.clock.now())
    engine, back_at = sweep.engine(), sweep.clock.now()
    engine.run(lambda: sweep.attempts()[0].stop_reason is not None)
    (attempt, *_) = sweep.attempts()
    assert attempt.stop_reason == "stall"
    assert timedelta(minutes=10) < attempt.stop_wanted_at - back_at < timedelta(minutes=12)
