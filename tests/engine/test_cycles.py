"""Studies driven from outside, in virtual time: by cycles of `resume --once`, as cron makes them, and by `stop` and
`cancel` that are left, taken up and waited for.

The verbs are the real ones; only the backend that they are given is simulated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
import yaml
from checkers import broken
from simulated import script_of
from sweeps import Sweep
from test_alarms import describing

from tuner.cli.printing import next_commands
from tuner.core.commands import Command
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import RequestRejected
from tuner.core.records import AttemptState, Holder, Intent, StudyState, TrialState
from tuner.engine.engine import LEASE_S, Services
from tuner.operations import backend, change, launch
from tuner.operations import look as looking
from tuner.operations.reconcile import Reconciler, Resumption
from tuner.operations.records import Signals, StudyOutcome

pytestmark = pytest.mark.slow

CRON_S = 120


@dataclass
class Screen:
    """A display that remembers, and presses Ctrl-C once the engine shows a state."""

    signals: Signals
    leave_at: StudyState | None = None
    lines: list[str] = field(default_factory=list)

    def tick(self, view) -> None:
        if view.state is self.leave_at:
            self.signals.stop_requested = True

    def event(self, line) -> None:
        self.lines.append(str(line.text))

    def close(self) -> None:
        pass


@dataclass
class User:
    """Verbs, one process each."""

    sweep: Sweep
    backends: backend.Backends
    said: list[str] = field(default_factory=list)
    last_words: str = ""

    def does(self, verb: Callable, *words, leave_at: StudyState | None = None, **options) -> StudyOutcome:
        signals = Signals()
        screen = Screen(signals, leave_at)
        try:
            return verb(
                *words,
                self.sweep.store,
                display=screen,
                signals=signals,
                clock=self.sweep.clock,
                backends=self.backends,
                **options,
            )
        finally:
            self.said, self.last_words = screen.lines, str(signals.last_words)

    def resume(self, **options) -> StudyOutcome:
        return self.does(launch.resume, "sweep", **options)

    def stop(self, **options) -> StudyOutcome:
        return self.does(change.request_stop, "sweep", **options)

    def cancel(self, **options) -> StudyOutcome:
        return self.does(change.request_cancel, "sweep", **options)

    def cron(self, cycles: int) -> list[list[tuple[str, StudyOutcome]]]:
        """The outcomes of that number of cycles."""
        told = []
        for _ in range(cycles):
            told.append(self.does(launch.resume_all_once, others_too=True))
            now = self.sweep.clock.now()
            self.sweep.clock.wait(now + timedelta(seconds=CRON_S), due=now)
        return told

    @property
    def study(self):
        return self.sweep.store.study_by_id(self.sweep.study.id)


@dataclass(frozen=True)
class SimulatedBackend(backend.LocalBackend):
    """The sweep's own cloud; one look reads `batch` lines of a trial."""

    sweep: Sweep
    batch: int | None

    def jobs_in_turn(self, _store, _clock):
        return self.sweep.cloud

    def services(self, _study, _spec, *, store, clock, listener) -> Services:
        return Services(
            store=store,
            clock=clock,
            jobs=self.sweep.cloud,
            progress=lambda: self.sweep.cloud.progress(batch=self.batch),
            proposer=backend.make_proposer,
            listener=listener,
        )


class Killed(BaseException):
    """The process is gone."""


class DeadlyBackend(backend.LocalBackend):
    """The process dies where it would start its engine."""

    def services(self, *_, **__):
        raise Killed


@dataclass
class Always(backend.Backends):
    """The same backend for every study."""

    backend: backend.Backend

    def make(self, _spec, _local_dir):
        return self.backend


@pytest.fixture
def user(make_sweep, tmp_path):
    """Somebody with one study, of which nobody has driven anything yet; one look reads `batch` lines of a trial."""

    def begin(batch: int | None = None, **options) -> User:
        sweep = make_sweep(**options)

        sweep.clock.wake = lambda: None
        return User(sweep, Always(SimulatedBackend(tmp_path, "us-east-1", "sweep", sweep, batch)))

    return begin


# --- what was asked last stays asked

# without checkpoints a stop waits for as long as it may: 5 minutes, two of cron's cycles and more
UNSAVED = script_of(epochs=100, step_s=60.0, checkpoint_every=0)


def at_work(user, **options) -> User:
    """Two jobs train, and nobody drives them."""
    someone = user(**options)
    someone.cron(3)
    assert [attempt.state for attempt in someone.sweep.attempts()] == [AttemptState.TRAINING] * 2
    return someone


def test_cycles_bring_a_stop_that_was_left_to_its_end_and_leave_it_there(user):
    someone = at_work(user, script=UNSAVED)
    someone.stop(leave_at=StudyState.DRAINING)
    assert someone.study.state is StudyState.DRAINING
    assert "tuner stop sweep" in someone.last_words
    assert "take it back: tuner resume sweep" in someone.last_words
    someone.cron(10)
    assert (someone.study.state, someone.study.intent) == (StudyState.STOPPED, Intent.STOP)
    assert len(someone.sweep.attempts()) == 2
    seq = someone.sweep.store.last_seq(someone.study.id)
    assert someone.cron(2) == [[], []]
    assert someone.resume(once=True).exit_code == Exit.NOT_FINISHED
    assert someone.sweep.store.last_seq(someone.study.id) == seq
    assert broken(someone.sweep) == []


def test_the_same_stop_again_goes_on_with_it(user):
    someone = at_work(user, script=UNSAVED)
    someone.stop(leave_at=StudyState.DRAINING)
    assert someone.stop().exit_code == Exit.DONE
    assert someone.study.state is StudyState.STOPPED
    assert len(someone.sweep.attempts()) == 2


def test_who_resumes_a_study_that_is_being_stopped_goes_on_with_it(user):
    someone = at_work(user, script=UNSAVED)
    someone.stop(leave_at=StudyState.DRAINING)
    someone.resume(leave_at=StudyState.RUNNING)
    assert (someone.study.state, someone.study.intent) == (StudyState.RUNNING, Intent.RUN)


@pytest.mark.parametrize("how", ["cron", "resume"])
def test_a_cancellation_that_was_left_is_brought_to_its_end_whoever_takes_it_up(user, how):
    someone = at_work(user, script=UNSAVED)
    someone.cancel(leave_at=StudyState.DRAINING)
    assert someone.study.state is StudyState.DRAINING
    assert "tuner cancel sweep" in someone.last_words
    assert "resume" not in someone.last_words
    # nothing that would keep it from going on keeps it from ending
    file = someone.sweep.folder / "study.yaml"
    other = {"objective": {"metric": "loss", "direction": "minimize"}}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **other}))
    if how == "resume":
        assert someone.resume(retry_failed=True).exit_code == Exit.DONE
        assert [line for line in someone.said if "is being cancelled: this ends it" in line]
    else:
        someone.cron(10)
    assert (someone.study.state, someone.study.intent) == (StudyState.CANCELLED, Intent.CANCEL)
    assert {trial.state for trial in someone.sweep.trials()} == {TrialState.CANCELLED}
    assert len(someone.sweep.attempts()) == 2
    assert broken(someone.sweep) == []


def test_a_cancellation_is_not_made_a_stop(user):
    someone = at_work(user, script=UNSAVED)
    someone.cancel(leave_at=StudyState.DRAINING)
    with pytest.raises(UserError, match="is being cancelled, and that stays; go on with it: tuner cancel sweep"):
        someone.stop()
    store, id_ = someone.sweep.store, someone.study.id
    store.add_request(id_, "stop", {"intent": "stop"}, "me", someone.sweep.clock.now())  # by a process that saw less
    someone.cron(10)
    assert someone.study.state is StudyState.CANCELLED
    assert "request.refused" in someone.sweep.kinds()


def test_a_change_under_a_clock_that_was_set_back_is_no_step_back_in_the_story(user):
    someone = at_work(user)
    someone.sweep.clock.jump(timedelta(minutes=-10))
    change.request_set("sweep", someone.sweep.store, ["trials=9"], clock=someone.sweep.clock)
    assert broken(someone.sweep) == []


@pytest.mark.parametrize(
    ("asked", "verb", "after"), [("stop", "stop", Intent.RUN), ("cancel", "cancel", Intent.CANCEL)]
)
def test_what_was_asked_of_a_dead_engine_comes_before_the_resume(user, asked, verb, after):
    someone = at_work(user, script=UNSAVED)
    someone.sweep.store.add_request(someone.study.id, verb, {"intent": asked}, "me", someone.sweep.clock.now())
    someone.resume(leave_at=StudyState.RUNNING)
    assert someone.study.intent is after


def test_cycles_do_not_go_on_with_jobs_that_are_not_what_was_asked_for(user):
    """The stop is the engine's own: nobody but the user takes it back."""
    someone = user(script=UNSAVED)
    describing(someone.sweep, lambda request: replace(request, role_arn="arn:other"))
    someone.cron(12)
    assert (someone.study.state, someone.study.intent) == (StudyState.STOPPED, Intent.STOP_NOW)
    assert len(someone.sweep.cloud.jobs) == 1


def test_what_is_taken_up_is_recorded_as_running_before_it_has_a_job(user):
    """If the process dies right after, the next cycle finds the study."""
    someone = at_work(user, script=UNSAVED)
    someone.stop(now_=True)
    assert someone.study.state is StudyState.STOPPED

    alive = someone.backends
    someone.backends = Always(DeadlyBackend(alive.backend.directory, alive.backend.region, "sweep"))
    with pytest.raises(Killed):
        someone.resume()
    someone.backends = alive
    assert (someone.study.state, someone.study.intent) == (StudyState.RUNNING, Intent.RUN)


# --- what one cycle sees


def test_cycles_come_to_the_end_of_what_one_look_does_not_read(user):
    """Each begins at the beginning: what it leaves unread, the next one leaves as well."""
    pruner = {"name": "PatientPruner", "wrapped_pruner": None, "patience": 100}
    someone = user(script=script_of(epochs=9, step_s=60.0), batch=2, changes={"search": {"pruner": pruner}})
    someone.cron(40)
    assert someone.study.state is StudyState.FINISHED
    assert {trial.judged_step for trial in someone.sweep.trials()} == {9}
    assert broken(someone.sweep) == []


def test_a_cycle_that_reads_on_keeps_its_lease_and_hears_ctrl_c(user):
    someone = at_work(user, script=UNSAVED, batch=1, changes={"training": {"max_run": "9h", "max_wait": "10h"}})
    looks, left = [], []
    someone.sweep.clock.wait(someone.sweep.clock.now() + timedelta(minutes=30))
    read, clock = someone.sweep.cloud.progress, someone.sweep.clock

    def slow(*, batch):
        reader = read(batch=batch)
        plain = reader.read

        def look(prefix):
            looks.append(prefix)
            clock.jump(timedelta(seconds=25))
            left.append(someone.study.lease_expires_at - clock.now())
            return plain(prefix)

        reader.read = look
        return reader

    someone.sweep.cloud.progress = slow
    outcome = someone.resume(once=True)
    assert outcome.study_state is StudyState.RUNNING
    assert len(looks) > 2 * 20
    assert min(left) > timedelta(0)
    looks.clear()
    someone.resume(once=True, leave_at=StudyState.RUNNING)
    assert len(looks) == 2


# --- limits that were raised


def resting(user, **budget) -> User:
    someone = user(script=script_of(epochs=5, step_s=60.0), changes={"budget": budget})
    someone.cron(12)
    assert someone.study.state in (StudyState.OUT_OF_BUDGET, StudyState.PAST_DEADLINE)
    assert [event for event in someone.cron(2) if event] == []
    return someone


@pytest.mark.parametrize(
    ("budget", "too_little", "enough"),
    [
        ({"usd": 1.72}, "budget.usd=1.73", "budget.usd=100"),
        ({"deadline": "5m"}, "budget.deadline=6m", "budget.deadline=3d"),
    ],
)
def test_cycles_go_on_once_a_limit_was_raised_and_only_then(user, budget, too_little, enough):
    someone = resting(user, **budget)
    rest = someone.study.state
    change.request_set("sweep", someone.sweep.store, [too_little], clock=someone.sweep.clock)
    looked = someone.cron(4)
    assert (someone.study.state, len(someone.sweep.trials()) < 4) == (rest, True)
    assert [len(each) for each in looked] == [1, 0, 0, 0], "one look is enough to see that it is too little"
    change.request_set("sweep", someone.sweep.store, [enough], clock=someone.sweep.clock)
    someone.cron(40)
    assert someone.study.state is StudyState.FINISHED
    assert broken(someone.sweep) == []


def test_a_limit_raised_while_a_cycle_leaves_is_heard_of_by_the_next(user):
    """The request came when the cycle had read its requests, and no other engine follows."""
    someone = resting(user, deadline="5m")
    store, now = someone.sweep.store, someone.sweep.clock.now()
    store.add_request(someone.study.id, "set", {"budget.deadline": "3d"}, "me", now)
    someone.cron(40)
    assert someone.study.state is StudyState.FINISHED


def test_a_limit_raised_for_a_study_that_was_stopped_starts_nothing(user):
    someone = at_work(user, script=UNSAVED)
    someone.stop(now_=True)
    change.request_set("sweep", someone.sweep.store, ["budget.usd=100"], clock=someone.sweep.clock)
    assert someone.cron(2) == [[], []]


# --- whether all is well


def problems(someone: User) -> list[str]:
    return [str(line) for line in looking.check("sweep", someone.sweep.store, clock=someone.sweep.clock)]


def test_a_study_is_well_between_its_cycles_and_not_when_they_fail_to_come(user):
    someone = at_work(user, script=UNSAVED)
    assert problems(someone) == []
    last = someone.study.last_tick_at
    someone.sweep.clock.jump(last + timedelta(minutes=15) - someone.sweep.clock.now())
    assert problems(someone) == []
    someone.sweep.clock.jump(timedelta(minutes=1))
    (line,) = problems(someone)
    assert "its last cycle (resume --once) was 16 min ago" in line
    assert line.endswith("or: tuner resume sweep")


def test_an_engine_that_left_or_died_is_missed_at_once(user):
    someone = at_work(user, script=UNSAVED)
    someone.resume(leave_at=StudyState.RUNNING)
    assert problems(someone) == ["study sweep is running, but no engine is alive: tuner resume sweep"]
    someone.stop(leave_at=StudyState.DRAINING)
    assert problems(someone) == ["study sweep is draining, but no engine is alive: tuner stop sweep"]


def test_a_cycle_that_does_not_end_is_no_well_driven_study(user):
    someone = at_work(user, script=UNSAVED)
    held_elsewhere(someone)
    someone.sweep.clock.jump(timedelta(minutes=5))
    assert "has not ticked for" in problems(someone)[0]


# --- waiting for another engine


def held_elsewhere(someone: User) -> None:
    """An engine of another host has the study: whether it lives, only its lease tells."""
    elsewhere = Holder(host="elsewhere", boot_id="b", pid=1, started="1")
    store, now = someone.sweep.store, someone.sweep.clock.now()
    store.acquire(someone.study.id, elsewhere, now=now, period_s=LEASE_S, gone=lambda _: False)


@pytest.mark.parametrize(("verb", "state"), [("stop", StudyState.STOPPED), ("cancel", StudyState.CANCELLED)])
def test_what_the_engine_of_a_dead_host_was_asked_is_done_once_its_lease_is_over(user, verb, state):
    someone = at_work(user, script=UNSAVED)
    held_elsewhere(someone)
    began = someone.sweep.clock.now()
    assert getattr(someone, verb)().exit_code == Exit.DONE
    assert someone.study.state is state
    assert timedelta(seconds=LEASE_S) <= someone.sweep.clock.now() - began < timedelta(minutes=15)
    assert all(job.status.final for job in someone.sweep.cloud.jobs.values())
    assert [line for line in someone.said if "waiting for its next tick" in line]


@pytest.mark.parametrize("asked", ["stop", "cancel"])
def test_a_wish_that_no_engine_has_heard_yet_is_what_goes_on(user, asked):
    someone = at_work(user, script=UNSAVED)
    held_elsewhere(someone)
    outcome = getattr(someone, asked)(wait=False)
    assert (someone.study.intent, outcome.summary["intent"]) == (Intent.RUN, asked)
    assert Command(asked, "sweep") in next_commands(outcome.summary)
    assert Command("resume", "sweep") not in next_commands(outcome.summary)


def test_who_waits_for_a_stop_that_is_taken_back_is_told_so(user, monkeypatch):
    someone = at_work(user, script=UNSAVED)
    store, clock = someone.sweep.store, someone.sweep.clock
    held_elsewhere(someone)
    waited = []

    def somebody_else(until, *, due=None):
        """Meanwhile the engine dies, and somebody resumes the study, which applies the stop first."""
        assert not waited, "it was told, and waits on"
        waited.append(until)
        new = Holder(host="new", boot_id="b", pid=2, started="2")
        lease = store.acquire(someone.study.id, new, now=clock.now(), period_s=LEASE_S, gone=lambda _: True)
        Reconciler(store, lease, Screen(Signals()), clock, someone.backends).take_up(
            someone.study, Resumption("another")
        )

    monkeypatch.setattr(clock, "wait", somebody_else)
    with pytest.raises(UserError, match="the stop of study sweep was taken back: somebody resumed it"):
        someone.stop()
    assert len(waited) == 1


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_jobs_that_are_refused_alike_end_the_asking_of_cycles_too(user, parallel):
    """Each cycle is a process of its own, which sees a few refusals; together they are enough."""
    someone = user(changes={"trials": 30, "parallel": parallel})

    def create(_request):
        raise RequestRejected("ValidationException: no such image")

    someone.sweep.cloud.create = create
    someone.cron(12)
    assert (someone.study.state, someone.study.intent) == (StudyState.STOPPED, Intent.DRAIN)
    assert sum(trial.state is TrialState.FAILED for trial in someone.sweep.trials()) <= max(4, parallel)
