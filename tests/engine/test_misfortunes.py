"""What the simulation found, each as the shortest story that shows it."""

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest
from checkers import broken, succeeded, view_is_the_rows
from simulated import script_of
from sweeps import Sweep, holder

from tuner.core.jobs import RequestRejected, ServiceUnavailable
from tuner.core.records import AttemptEnd, Holder, Intent, StudyState
from tuner.engine.engine import LEASE_S
from tuner.simulator.parts import Script
from tuner.store.store import LeaseHeld, LeaseLost, StoreConflict, StoreUnreachable

pytestmark = pytest.mark.slow

POLL = timedelta(seconds=30)


def drive(sweep, engine, seconds):
    until = sweep.clock.now() + timedelta(seconds=seconds)
    engine.run(lambda: sweep.clock.now() >= until)


# --- a job of ours must not run unseen


def test_a_rejection_after_a_lost_answer_does_not_hide_the_job(make_sweep):
    """The first call was accepted; the second is refused before the name is looked at."""
    sweep = make_sweep(changes={"trials": 1})
    sweep.cloud.fail_next("create", ServiceUnavailable("timed out"), lost=True)
    engine = sweep.engine()
    engine.tick()
    sweep.cloud.fail_next("create", RequestRejected("the role has lost its rights"))
    engine.run(lambda: False)
    assert [attempt.end for attempt in sweep.attempts()] == [AttemptEnd.COMPLETED]
    assert succeeded(sweep) == [0]
    assert broken(sweep) == []


def test_a_rejection_waits_until_it_is_known_that_there_is_no_job(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    sweep.cloud.fail_next("create", RequestRejected("no such image"))
    sweep.cloud.fail_next("describe", ServiceUnavailable("not now"))
    sweep.run()
    # the second create was not refused, and the trial lives
    assert succeeded(sweep) == [0]
    assert sweep.attempts()[0].refusals == 1


def test_a_stop_that_is_denied_for_good_loses_nothing(make_sweep):
    """The user wants the jobs to end now and no stop is accepted: they are harvested when they end by themselves."""
    sweep = make_sweep(changes={"trials": 2, "parallel": 2}, script=script_of(epochs=30, step_s=60.0))
    denied: list[str] = []

    def deny(name: str) -> None:
        denied.append(name)
        raise RequestRejected(f"StopTrainingJob of {name}: no")

    sweep.cloud.stop = deny
    engine = sweep.engine()
    drive(sweep, engine, 600)
    unit = engine._unit(sweep.clock.now())
    unit.set_study(replace(engine.study, intent=Intent.STOP_NOW, intent_at=sweep.clock.now()))
    engine._commit(unit, "stopped")
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1]
    assert len(denied) > 10, "told again and again"
    assert broken(sweep) == []


@pytest.mark.parametrize("seen_s", [0, 300])
def test_a_deleted_job_is_booked_with_all_that_it_may_have_billed(make_sweep, seen_s):
    """Its figures are gone; it may have trained on since it was last looked at."""
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=50, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    drive(sweep, engine, seen_s)
    sweep.clock.wait(sweep.clock.now() + timedelta(minutes=20), due=sweep.clock.now())
    job = sweep.cloud.jobs[sweep.attempts()[0].job_name]
    sweep.cloud.fail(job.name, "InternalServerError: before it was deleted")
    billed_s = job.bill(0.0).billable_s
    sweep.cloud.delete(job.name)
    engine.tick()
    attempt = sweep.attempts()[0]
    assert attempt.end is AttemptEnd.SERVICE_FAULT
    assert billed_s <= attempt.billable_s <= billed_s + 200
    assert attempt.spend_microusd <= attempt.reserved_microusd


def test_what_is_booked_for_a_deleted_job_is_no_more_than_it_reserved(make_sweep):
    sweep = make_sweep(changes={"trials": 1, "training": {"max_run": "10m"}}, script=script_of(epochs=50, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    sweep.clock.wait(sweep.clock.now() + timedelta(hours=30), due=sweep.clock.now())
    sweep.cloud.delete(sweep.attempts()[0].job_name)
    engine.tick()
    attempt = sweep.attempts()[0]
    assert 0.99 < attempt.spend_microusd / attempt.reserved_microusd <= 1


# --- requests


def wish(sweep, verb, values):
    sweep.store.add_request(sweep.study.id, verb, values, "me", sweep.clock.now())


@pytest.mark.parametrize("values", [{"budget.usd": "0.01"}, {"training.max_run": "1h"}, {"trials": "many"}])
def test_a_request_that_does_not_fit_is_refused_once_and_kills_nobody(make_sweep, values):
    sweep = make_sweep(changes={"budget": {"usd": 20}})
    before = sweep.store.study_by_id(sweep.study.id).spec
    wish(sweep, "set", values)
    assert sweep.run() is StudyState.FINISHED
    assert sweep.kinds().count("request.refused") == 1
    assert sweep.store.pending_requests(sweep.study.id) == []
    assert sweep.store.study_by_id(sweep.study.id).spec == before


def test_a_budget_below_what_is_bound_is_refused_by_the_engine_too(make_sweep):
    """It fitted when the user wrote it; jobs were submitted since."""
    sweep = make_sweep(changes={"budget": {"usd": 20}})
    engine = sweep.engine()
    engine.tick()
    wish(sweep, "set", {"budget.usd": "2"})
    engine.tick()
    assert sweep.kinds().count("request.refused") == 1
    wish(sweep, "set", {"budget.usd": "4"})
    engine.tick()
    assert sweep.kinds().count("request.refused") == 1


def test_more_than_the_budget_of_a_study_can_change_while_it_is_bound(make_sweep):
    """The study spent under a budget that is now exactly used up: other settings can still be changed."""
    sweep = make_sweep(changes={"budget": {"usd": 2}})
    engine = sweep.engine()
    engine.tick()
    wish(sweep, "set", {"parallel": "1"})
    engine.tick()
    assert "request" in sweep.kinds()
    assert "request.refused" not in sweep.kinds()


def test_a_cancel_that_comes_after_the_end_changes_nothing(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    assert sweep.run() is StudyState.FINISHED
    wish(sweep, "cancel", {"intent": "cancel"})
    assert sweep.run() is StudyState.FINISHED
    assert "request.refused" in sweep.kinds()
    wish(sweep, "set", {"trials": "2"})
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1]


# --- time, lease, store


def test_a_clock_that_is_set_back_does_not_make_the_story_run_back(make_sweep):
    sweep = make_sweep()
    engine = sweep.engine()
    drive(sweep, engine, 300)
    sweep.clock.jump(timedelta(minutes=-10))
    engine.run(lambda: False)
    assert broken(sweep) == []
    sweep.clock.jump(timedelta(minutes=-10))
    sweep.engine().tick()  # a new process does not know the old one's clock
    assert broken(sweep) == []


@pytest.mark.parametrize("poll", ["30s", "2m", "10m"])
def test_a_lease_does_not_run_out_between_two_polls(make_sweep, poll):
    sweep = make_sweep(changes={"settings": {"poll": poll}})
    engine = sweep.engine()
    engine.tick()
    just_before = sweep.clock.now() + timedelta(seconds=engine.live.policy.poll_s + 10)
    other = Holder(host="elsewhere", boot_id="boot", pid=9, started="9")
    with pytest.raises(LeaseHeld):
        sweep.store.acquire(sweep.study.id, other, now=just_before, period_s=LEASE_S, gone=lambda _holder: False)


class Unreliable:
    """A store whose next calls raise."""

    def __init__(self, store) -> None:
        self.store = store
        self.errors: list[tuple[str, Exception]] = []

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            if self.errors and self.errors[0][0] == name:
                raise self.errors.pop(0)[1]
            return getattr(self.store, name)(*args, **kwargs)

        return call


def test_a_store_that_goes_away_while_a_conflict_is_dealt_with_is_waited_for(make_sweep):
    sweep: Sweep = make_sweep()
    engine = sweep.engine()
    store = Unreliable(sweep.store)
    engine._services = replace(engine._services, store=store)
    store.errors = [("commit", StoreConflict("another wrote")), ("live", StoreUnreachable("gone"))]
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert store.errors == []
    assert succeeded(sweep) == [0, 1, 2, 3]
    assert broken(sweep) == []


def test_an_engine_that_wakes_up_after_another_took_over_writes_and_sends_nothing(make_sweep):
    sweep = make_sweep()
    old = sweep.engine()
    old.tick()
    sweep.clock.wait(sweep.clock.now() + timedelta(minutes=10), due=sweep.clock.now())
    sweep.store.acquire(sweep.study.id, holder(7), now=sweep.clock.now(), period_s=LEASE_S, gone=lambda _holder: False)
    events, calls = sweep.kinds(), dict(sweep.cloud.calls)
    with pytest.raises(LeaseLost):
        old.tick()
    assert (sweep.kinds(), dict(sweep.cloud.calls)) == (events, calls)


# --- metrics


def test_a_number_that_becomes_none_when_repeated_leaves_the_view(make_sweep):
    """The later run wins, also where what it reports is no number."""
    told = []

    def curve(_hyperparameters, step):
        told.append(step)
        return float("nan") if step == 1 and told.count(1) > 1 else 0.1 * step

    script = Script(epochs=4, step_s=60.0, curve=curve, checkpoint_every=4)
    pruner = {"name": "MedianPruner", "n_startup_trials": 1}  # or nobody would be shown steps
    sweep = make_sweep(changes={"trials": 1, "search": {"pruner": pruner}}, script=lambda _request: script)
    engine = sweep.engine()
    while not sweep.store.points(sweep.study.id):
        engine.tick()
        sweep.clock.wait(sweep.clock.now() + POLL)
    assert 1 in told
    sweep.cloud.interrupt()
    while engine.tick().active:
        assert view_is_the_rows(sweep, engine) == []
        sweep.clock.wait(sweep.clock.now() + POLL)
    assert told.count(1) == 2
    assert succeeded(sweep) == [0]


def test_a_restart_that_has_read_only_half_does_not_unsay_what_was_proven(make_sweep):
    """A new engine reads each prefix from its beginning, one slice a tick; it may leave before it has read all."""
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=9, step_s=60.0, manifests=False))
    engine = sweep.engine()
    drive(sweep, engine, 350)
    sweep.cloud.interrupt()
    drive(sweep, engine, 200)
    proven = sweep.store.runs(sweep.study.id)
    assert [run.resumed_from_step is not None for run in proven] == [False, True]
    again = sweep.engine()
    again._services = replace(again._services, progress=lambda: sweep.cloud.progress(batch=1))
    again._load()
    again.tick()
    assert sweep.store.runs(sweep.study.id) == proven


def test_a_stop_is_sent_however_long_a_tick_looks(make_sweep):
    """A thousand prefixes, or a store of objects that does not answer: looking outlasts the lease at every tick."""
    sweep = make_sweep(changes={"trials": 2, "parallel": 2}, script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    read = engine._progress.read

    def slow(prefix):
        sweep.clock.wait(sweep.clock.now() + timedelta(seconds=LEASE_S + 60))
        return read(prefix)

    engine._progress.read = slow
    drive(sweep, engine, 300)
    sweep.store.add_request(sweep.study.id, "stop", {"intent": "stop_now"}, "me", sweep.clock.now())
    drive(sweep, engine, 3600)
    assert sweep.store.study_by_id(sweep.study.id).state is StudyState.STOPPED
    assert all(job.status.final for job in sweep.cloud.jobs.values())
    assert broken(sweep) == []


def test_a_tick_that_outlasted_its_lease_sends_nothing_once_somebody_else_took_over(make_sweep):
    sweep = make_sweep(changes={"trials": 2, "parallel": 2}, script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    read = engine._progress.read

    def overtaken(prefix):
        sweep.clock.wait(sweep.clock.now() + timedelta(seconds=LEASE_S + 200))
        engine._progress.read = read
        sweep.engine()
        return read(prefix)

    engine._progress.read = overtaken
    sweep.store.add_request(sweep.study.id, "stop", {"intent": "stop_now"}, "me", sweep.clock.now())
    with pytest.raises(LeaseLost):
        drive(sweep, engine, 3600)
    assert sweep.cloud.calls["stop"] == 0


def test_a_clock_that_was_set_back_makes_no_lease_good_that_somebody_else_took(make_sweep):
    sweep = make_sweep(changes={"trials": 2, "parallel": 2}, script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    engine.tick()

    def overtaken(point):
        if point == "after observed":  # nothing more is committed before the stop is sent
            sweep.clock.wait(sweep.clock.now() + timedelta(seconds=LEASE_S + 200))
            sweep.engine()
            sweep.clock.jump(timedelta(seconds=-LEASE_S - 190))

    engine._services = replace(engine._services, crash_point=overtaken)
    sweep.store.add_request(sweep.study.id, "stop", {"intent": "stop_now"}, "me", sweep.clock.now())
    with pytest.raises(LeaseLost):
        engine.tick()
    assert sweep.cloud.calls["stop"] == 0


class Ahead:
    """A clock that is minutes ahead of the service's: signatures allow five."""

    BY = timedelta(minutes=4, seconds=50)

    def __init__(self, true):
        self._true = true

    def now(self):
        return self._true.now() + self.BY

    def elapsed_s(self):
        return self._true.elapsed_s()

    def wait(self, until, *, due=None):
        self._true.wait(until - self.BY, due=None if due is None else due - self.BY)


def test_a_clock_that_is_ahead_hides_no_news(make_sweep):
    """What changed is asked for by the service's clock: by ours, it would have changed long before the last look."""
    number = itertools.count(20)
    sweep = make_sweep(
        changes={"trials": 6, "parallel": 6}, script=lambda _request: Script(epochs=next(number), step_s=60.0)
    )
    engine = sweep.engine()
    engine._services = replace(engine._services, clock=Ahead(sweep.clock))
    engine.run(lambda: False)
    ended_at = {job.name: job.history[-1].started_at for job in sweep.cloud.jobs.values()}
    seen_late = [attempt.ended_at - Ahead.BY - ended_at[attempt.job_name] for attempt in sweep.attempts()]
    assert max(seen_late) <= 2 * POLL
    assert succeeded(sweep) == list(range(6))


# --- a tick stays short


def test_a_store_of_objects_that_is_away_is_asked_a_few_times_a_tick_not_once_for_each_trial(make_sweep):
    """Each call may wait out a time limit, while stops are to be sent."""
    sweep = make_sweep(changes={"trials": 10, "parallel": 10}, script=script_of(epochs=50, step_s=60.0))
    engine = sweep.engine()
    drive(sweep, engine, 1200)
    asked = sweep.cloud._slots["read"]
    for _ in range(30):
        sweep.cloud.fail_next("read", OSError("timed out"))
    engine.tick()
    assert len(asked) == 27
    drive(sweep, engine, 600)
    engine.run(lambda: False)
    assert len(succeeded(sweep)) == 10
    assert broken(sweep) == []


@pytest.mark.parametrize("count", [1, 3, 4])
def test_prefixes_that_cannot_be_read_keep_no_other_from_being_read(make_sweep, monkeypatch, count):
    """Not even as many as a store that is away is asked for, in each tick before all others."""
    sweep = make_sweep(changes={"trials": 6, "parallel": 6}, script=script_of(epochs=50, step_s=60.0))
    engine = sweep.engine()
    drive(sweep, engine, 1200)
    bad, read = [engine.live.trials[number].record.prefix for number in range(count)], engine._progress.read

    def refuses(prefix):
        if prefix in bad:
            raise OSError("a symbolic link leads out of the tree")
        return read(prefix)

    monkeypatch.setattr(engine._progress, "read", refuses)
    drive(sweep, engine, 7200)
    assert succeeded(sweep) == list(range(count, 6))
    mended = bad.pop()
    drive(sweep, engine, 120)
    assert engine.live.trials.keys() == set(range(count - 1)), f"{mended} had its turn"


def test_prefixes_that_are_refused_keep_no_other_from_being_read_by_processes_of_one_look(make_sweep, monkeypatch):
    """They know nothing of the looks before; but a refusal comes at once, and tells nothing of the other prefixes."""
    sweep = make_sweep(changes={"trials": 6, "parallel": 6}, script=script_of(epochs=5, step_s=60.0))
    drive(sweep, sweep.engine(), 60)
    bad = {trial.prefix for trial in sweep.trials()[:4]}
    for _ in range(8):
        engine = sweep.engine()
        read = engine._progress.read

        def refuses(prefix, read=read):
            if prefix in bad:
                raise PermissionError("AccessDenied: its key is not ours")
            return read(prefix)

        monkeypatch.setattr(engine._progress, "read", refuses)
        engine.cycle(lambda: False)
        sweep.clock.wait(sweep.clock.now() + timedelta(seconds=120), due=sweep.clock.now() + timedelta(seconds=120))
    assert succeeded(sweep) == [4, 5]


def test_a_trial_is_concluded_once_the_reader_has_its_last_attempt_whole(make_sweep, monkeypatch):
    """A source of metrics may lag behind the end of a job; while one trains, nothing waits for that."""
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=5, step_s=60.0))
    engine = sweep.engine()
    read, whole = engine._progress.read, [0]
    monkeypatch.setattr(engine._progress, "read", lambda prefix: replace(read(prefix), whole_through=whole[0]))
    drive(sweep, engine, 360)
    assert sweep.attempts()[0].live
    assert not engine.live.trials[0].unread, "what is due of a live attempt is what lies there"
    drive(sweep, engine, 3600)
    assert (sweep.attempts()[0].end, succeeded(sweep)) == (AttemptEnd.COMPLETED, [])
    whole[0] = 1
    drive(sweep, engine, 60)
    assert succeeded(sweep) == [0]


def test_what_came_late_of_a_deleted_job_is_read_before_its_end_means_anything(make_sweep, monkeypatch):
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=50, step_s=60.0))
    engine = sweep.engine()
    read, whole = engine._progress.read, [0]
    monkeypatch.setattr(engine._progress, "read", lambda prefix: replace(read(prefix), whole_through=whole[0]))
    drive(sweep, engine, 1200)
    sweep.cloud.fail(sweep.attempts()[0].job_name, "InternalServerError: before it was deleted")
    sweep.cloud.delete(sweep.attempts()[0].job_name)
    drive(sweep, engine, 600)
    assert (len(sweep.attempts()), sweep.attempts()[0].end) == (1, AttemptEnd.SERVICE_FAULT)
    whole[0] = 1
    drive(sweep, engine, 600)
    assert len(sweep.attempts()) == 2
