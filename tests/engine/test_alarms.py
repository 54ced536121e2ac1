"""What must be said once and loudly: jobs that are not what was asked for, credentials that expire in mid-sweep."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from unittest.mock import Mock

import pytest
from checkers import broken, succeeded
from simulated import script_of

from tuner.core.jobs import (
    CredentialsRefused,
    JobNotFound,
    JobRequest,
    JobService,
    Observation,
    RequestRejected,
    RoleNotReady,
    SecretMissing,
    ServiceUnavailable,
)
from tuner.core.records import AttemptEnd, AttemptState, Holder, StudyState, TrialState
from tuner.operations.backend import Backends, LocalBackend
from tuner.operations.reconcile import Reconciler, Resumption
from tuner.reports.events import narrate
from tuner.reports.views import status_view
from tuner.search.proposer import ProposalError

pytestmark = pytest.mark.slow

EXPIRED = CredentialsRefused("DescribeTrainingJob of x: ExpiredTokenException: expired (renew the credentials …)")


def describing(sweep, change: Callable[[JobRequest], JobRequest]) -> None:
    """The cloud says what it was asked for, after something changed it on its way."""
    plain = sweep.cloud.describe

    def describe(name: str) -> Observation:
        return replace(plain(name), asked=change(sweep.cloud.jobs[name].request))

    sweep.cloud.describe = describe


def events(sweep, kind: str):
    return [event for event in sweep.store.events(sweep.study.id) if event.kind == kind]


class BesideFile(Backends):
    """Every study is local, and its state directory is where its study file is."""

    def make(self, spec, _local_dir):
        return LocalBackend(spec.file.parent, spec.region, spec.name)


def resume(sweep) -> None:
    """What `tuner resume` settles before its engine goes on."""
    holder = Holder(host="here", boot_id="b", pid=7, started="7")
    lease = sweep.store.acquire(sweep.study.id, holder, now=sweep.clock.now(), period_s=60.0, gone=lambda _: True)
    study = sweep.store.study_by_id(sweep.study.id)
    Reconciler(sweep.store, lease, Mock(), sweep.clock, BesideFile()).take_up(study, Resumption("me"))


# --- what was asked for


def test_a_dropped_spot_flag_stops_the_study_after_one_job(make_sweep):
    sweep = make_sweep(changes={"trials": 6, "parallel": 3}, script=script_of(epochs=500, step_s=60.0))
    describing(sweep, lambda request: replace(request, spot=False, max_wait_s=None))
    engine = sweep.engine()
    state = engine.run(lambda: False)
    assert state is StudyState.STOPPED
    assert len(sweep.cloud.jobs) == 1
    (job,) = sweep.cloud.jobs.values()
    assert job.status.final
    assert "spot: asked for True, the job has False" in str(engine.live.halted)
    (differs,) = events(sweep, "differs")
    (line,) = narrate([differs])
    assert (line.level, job.name in str(line.text)) == ("error", True)
    assert "tuner resume sweep" in str(line.text)
    status = status_view(sweep.store, sweep.store.study_by_id(sweep.study.id), sweep.clock.now())
    assert status["warnings"][0] == str(engine.live.halted), "a user who looks later learns why it stopped, too"
    # nobody failed, and at the poll after the job was made it was told to stop
    assert {trial.state for trial in sweep.trials()} == {TrialState.BACKING_OFF}
    assert not [trial for trial in sweep.trials() if "user" in trial.reason], "who asked for nothing is told so"
    assert sum(event.kind == "attempt.stop" for event in sweep.store.events(sweep.study.id)) == 3
    assert sweep.clock.now() - sweep.study.created_at < timedelta(minutes=10)
    assert broken(sweep) == []


def test_a_dropped_environment_stops_the_study(make_sweep):
    """With it the digest is gone: nobody would know the job for ours again."""
    sweep = make_sweep(changes={"trials": 2})
    plain = sweep.cloud.describe
    sweep.cloud.describe = lambda name: replace(plain(name), digest=None)
    engine = sweep.engine()
    assert engine.run(lambda: False) is StudyState.STOPPED
    assert "environment: asked for the digest" in str(engine.live.halted)


def test_a_study_file_that_was_changed_meanwhile_is_no_difference(make_sweep):
    """The next process compares what it created itself, not what the former study file asked for."""
    sweep = make_sweep(changes={"trials": 2, "parallel": 2})
    first = sweep.engine()
    sweep.cloud.fail_next("describe", ServiceUnavailable("not now"))
    first.tick()
    (job,) = sweep.cloud.jobs.values()
    assert sweep.attempts()[0].observed_at is None
    describing(sweep, lambda request: replace(request, role_arn="arn:former") if request.name == job.name else request)
    engine = sweep.engine()
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert engine.live.halted is None


def test_jobs_refused_alike_end_the_asking_not_the_trials(make_sweep):
    sweep = make_sweep(changes={"trials": 12, "parallel": 3}, script=script_of(epochs=40, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    assert len(sweep.cloud.jobs) == 3
    plain = sweep.cloud.create

    def create(request: JobRequest) -> str:
        raise RequestRejected(f"create of {request.name}: the image is gone")

    sweep.cloud.create = create
    assert engine.run(lambda: False) is StudyState.STOPPED
    states = Counter(trial.state for trial in sweep.trials())
    assert states[TrialState.SUCCEEDED] == 3, "those that ran went on to their end"
    assert states[TrialState.FAILED] == 3, "three that were refused for the same reason"
    assert len(sweep.trials()) <= 6 + 2, "those that had been begun in the same tick; no other"
    (halted,) = events(sweep, "halted")
    (line,) = narrate([halted])
    assert line.level == "error"
    assert "the image is gone" in str(line.text)
    assert "tuner resume sweep --retry-failed" in str(line.text)
    assert str(engine.live.halted) in str(line.text)
    status = status_view(sweep.store, sweep.store.study_by_id(sweep.study.id), sweep.clock.now())
    assert status["warnings"][0] == str(engine.live.halted), "a user who looks later learns why it stopped, too"
    assert sweep.engine().live.halted, "and the next process asks for nothing either"

    sweep.cloud.create = plain
    resume(sweep)
    again = sweep.engine()
    assert again.live.halted is None
    assert again.run(lambda: False) is StudyState.FINISHED
    assert broken(sweep) == []


def test_a_space_that_fails_in_mid_sweep_ends_the_asking_not_the_jobs(make_sweep, monkeypatch):
    sweep = make_sweep(changes={"trials": 6, "parallel": 2}, script=script_of(epochs=40, step_s=60.0))
    engine = sweep.engine()
    ask = engine.live.proposer.ask

    def failing(number: int):
        if number >= 3:
            raise ProposalError("space: f of space.py failed: ValueError: no")
        return ask(number)

    monkeypatch.setattr(engine.live.proposer, "ask", failing)
    assert engine.run(lambda: False) is StudyState.STOPPED
    assert succeeded(sweep) == [0, 1, 2]
    assert "space: f of space.py failed" in str(engine.live.halted)
    assert str(engine.live.halted).endswith("tuner resume sweep")
    assert len(events(sweep, "halted")) == 1


def test_refusals_of_their_own_fail_each_its_trial(make_sweep):
    """Values that a limit of the service refuses differ from trial to trial, and others are accepted between."""
    sweep = make_sweep(changes={"trials": 9, "parallel": 1})
    plain = sweep.cloud.create

    def create(request: JobRequest) -> str:
        if int(request.name.split("-")[-2]) % 3:
            raise RequestRejected(f"create of {request.name}: too long")
        return plain(request)

    sweep.cloud.create = create
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0, 3, 6]


def test_once_jobs_are_what_was_asked_for_the_study_goes_on(make_sweep):
    sweep = make_sweep(changes={"trials": 3, "parallel": 3})
    plain = sweep.cloud.describe
    describing(sweep, lambda request: replace(request, checkpoint_uri="s3://elsewhere/"))
    assert sweep.run() is StudyState.STOPPED
    sweep.cloud.describe = plain
    describing(sweep, lambda request: request)
    resume(sweep)
    engine = sweep.engine()
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert engine.live.halted is None
    assert succeeded(sweep) == [0, 1, 2]
    assert broken(sweep) == []


def test_a_later_job_that_differs_is_noticed_when_it_is_first_described(make_sweep):
    sweep = make_sweep(changes={"trials": 3, "parallel": 1})
    first = f"{sweep.study.key}-00000-001"
    describing(sweep, lambda request: request if request.name == first else replace(request, role_arn="arn:other"))
    assert sweep.run() is StudyState.STOPPED
    assert succeeded(sweep) == [0]
    assert len(sweep.cloud.jobs) == 2
    assert len(events(sweep, "differs")) == 1


def test_jobs_wait_until_the_first_could_be_looked_at(make_sweep):
    sweep = make_sweep(changes={"trials": 3, "parallel": 3})
    engine = sweep.engine()
    sweep.cloud.fail_next("describe", ServiceUnavailable("not now"))
    engine.tick()
    assert len(sweep.cloud.jobs) == 1
    engine.run(lambda: False)
    assert succeeded(sweep) == [0, 1, 2]


# --- credentials


class Door:
    """Between engine and cloud: shut, every call is refused."""

    def __init__(self, cloud: JobService) -> None:
        self.shut: Exception | None = None
        self.knocks = 0
        for name in ("create", "describe", "list_changed", "stop"):
            setattr(cloud, name, self._guarded(getattr(cloud, name)))

    def _guarded(self, call):
        def guarded(*args, **kwargs):
            if self.shut is not None:
                self.knocks += 1
                raise self.shut
            return call(*args, **kwargs)

        return guarded


def drive(sweep, engine, seconds):
    until = sweep.clock.now() + timedelta(seconds=seconds)
    engine.run(lambda: sweep.clock.now() >= until)


def test_credentials_that_expire_are_said_once_and_nothing_fails(make_sweep):
    sweep = make_sweep(changes={"trials": 4, "parallel": 2}, script=script_of(epochs=20, step_s=60.0))
    door, engine = Door(sweep.cloud), sweep.engine()
    drive(sweep, engine, 300)
    assert engine.live.refused is None
    door.shut = EXPIRED
    drive(sweep, engine, 36_000)
    assert door.knocks > 100  # it goes on trying
    assert engine.live.refused == str(EXPIRED)
    assert sweep.store.study_by_id(sweep.study.id).state is StudyState.RUNNING
    assert not any(trial.state.terminal for trial in sweep.trials())
    assert all(job.status.final for job in sweep.cloud.jobs.values())  # jobs went on, and ended well
    told = narrate(sweep.store.events(sweep.study.id))
    assert [line.text for line in told].count(str(EXPIRED)) == 1
    door.shut = None
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert engine.live.refused is None
    assert succeeded(sweep) == [0, 1, 2, 3]
    assert len(sweep.attempts()) == 4
    assert len(events(sweep, "recovered")) == 1
    assert broken(sweep) == []


@pytest.mark.parametrize("refusal", [EXPIRED, SecretMissing("training.secrets: the variable KEY is not set")])
def test_what_the_user_must_give_keeps_attempts_submitting(make_sweep, refusal):
    sweep = make_sweep(changes={"trials": 3, "parallel": 3})
    door, engine = Door(sweep.cloud), sweep.engine()
    door.shut = refusal
    drive(sweep, engine, 7200)
    assert engine.live.refused == str(refusal)
    assert {attempt.state for attempt in sweep.attempts()} == {AttemptState.SUBMITTING}
    assert len(sweep.attempts()) == 3
    assert len(events(sweep, "trouble")) == 1
    assert len(sweep.store.events(sweep.study.id)) < 30
    door.shut = None
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1, 2]


def test_a_role_that_was_made_moments_ago_is_waited_for(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    for _ in range(4):
        sweep.cloud.fail_next("create", RoleNotReady("Could not assume role"))
    assert sweep.run() is StudyState.FINISHED
    assert sweep.attempts()[0].refusals == 4
    assert events(sweep, "trouble") == []


def test_a_role_that_stays_out_of_reach_is_the_user_s_affair(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    door, engine = Door(sweep.cloud), sweep.engine()
    door.shut = RoleNotReady("Could not assume role arn:aws:iam::1:role/x")
    drive(sweep, engine, 60)
    assert engine.live.refused is None
    drive(sweep, engine, 7200)
    assert "Could not assume role" in engine.live.refused
    assert sweep.attempts()[0].state is AttemptState.SUBMITTING


# --- how jobs end


def end_with(sweep, failure: str):
    """Every job fails with these words as soon as it is seen."""
    engine = sweep.engine()
    for _ in range(100):
        engine.tick()
        if not engine.study.state.active:
            return
        for job in sweep.cloud.jobs.values():
            if not job.status.final:
                sweep.cloud.fail(job.name, failure)
        sweep.clock.wait(sweep.clock.now() + timedelta(minutes=20), due=sweep.clock.now())
    pytest.fail("it never came to rest")


FRAMEWORK = "AlgorithmError: Framework Error: \nTraceback (most recent call last):\nImportError: x, exit code: {}"
MEMORY = "ClientError: Please use an instance type with more memory, or reduce the size of training data"


@pytest.mark.parametrize(
    ("failure", "attempts", "reason"),
    [
        (MEMORY, 1, f"out_of_memory: {MEMORY}"),
        ("AlgorithmError: NCCL …\ntorch.OutOfMemoryError: CUDA out of memory.", 1, "out_of_memory: AlgorithmError"),
        ("AlgorithmError: ExitCode 1\nout of memory at 512, so 256\nNCCL timeout", 4, "out_of_memory: AlgorithmError"),
        ("AlgorithmError: ExitCode 9\nOutOfMemory: Process killed by SIGKILL", 1, "out_of_memory: AlgorithmError"),
        ("AlgorithmError: ExitCode 137\nOutOfMemory: Process killed by SIGKILL", 4, "out_of_memory: AlgorithmError"),
        ("ClientError: Artifact upload failed: access denied", 1, "ClientError: Artifact upload failed"),
        ("ClientError: Data download failed", 1, "ClientError: Data download"),
        ("AlgorithmError: NCCL timeout", 4, "AlgorithmError: NCCL timeout (after 3 retried faults)"),
        ("AlgorithmError: ExitCode 1", 1, "AlgorithmError: ExitCode 1"),
        (FRAMEWORK.format(1), 1, "AlgorithmError: Framework Error: \nTraceback"),
        (FRAMEWORK.format(137), 4, "(after 3 retried faults)"),
        ("AlgorithmError: Exit Code: 137", 4, "AlgorithmError: Exit Code: 137 (after 3 retried faults)"),
        ("InternalServerError: We encountered an internal error.", 4, "the image that does not start"),
        ("SomethingNew: with all its words", 4, "SomethingNew: with all its words (after 3 retried faults)"),
    ],
)
def test_a_failure_is_answered_as_its_kind_asks(make_sweep, failure, attempts, reason):
    sweep = make_sweep(changes={"trials": 1, "training": {"retry_on": [{"log": "NCCL"}, {"exit_code": 137}]}})
    end_with(sweep, failure)
    (trial,) = sweep.trials()
    assert trial.state is TrialState.FAILED
    assert reason in trial.reason
    assert len(sweep.attempts()) == attempts


def test_lack_of_capacity_is_no_failure(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    engine = sweep.engine()
    engine.tick()
    sweep.cloud.fail(sweep.attempts()[0].job_name, "CapacityError: Unable to provision requested ML compute capacity.")
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert [attempt.end for attempt in sweep.attempts()] == [AttemptEnd.CAPACITY, AttemptEnd.COMPLETED]


def test_a_rejection_says_why_to_the_trial(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    sweep.cloud.fail_next("create", RequestRejected("not sent: roleArn"))
    sweep.run()
    assert "not sent: roleArn" in sweep.trials()[0].reason


# --- the service's figures


@pytest.mark.parametrize(
    ("final", "count", "told"),
    [
        (lambda value: value, 1, 0),
        (lambda value: value * (1 + 5e-8), 1, 0),  # single precision
        (lambda value: value + 0.01, 1, 1),
        (lambda value: value + 0.01, 2, 0),  # whichever host spoke last
        (lambda _value: None, 1, 0),
    ],
)
def test_the_objective_is_checked_against_the_service_and_stays(make_sweep, final, count, told):
    plain_sweep = make_sweep(changes={"trials": 1})
    plain_sweep.run()
    (value,) = plain_sweep.trials()[0].values
    theirs = {} if final(value) is None else {"val_accuracy": final(value), "of no interest": 7.0}
    sweep = make_sweep(changes={"trials": 1})
    plain, engine = sweep.cloud.describe, sweep.engine()
    engine.live.policy = replace(engine.live.policy, instance_count=count)
    sweep.cloud.describe = lambda name: replace(plain(name), final_metrics=theirs)
    engine.run(lambda: False)
    differs = events(sweep, "metric.differs")
    assert len(differs) == told
    assert sweep.trials()[0].values == (value,)
    for line in narrate(differs):
        assert (line.level, "our value is used" in line.text) == ("warn", True)


@pytest.mark.parametrize("theirs", [math.nan, math.inf, -math.inf])
def test_a_last_value_that_is_no_number_does_not_end_the_engine(make_sweep, theirs):
    sweep = make_sweep(changes={"trials": 1})
    plain = sweep.cloud.describe
    sweep.cloud.describe = lambda name: replace(plain(name), final_metrics={"val_accuracy": theirs})
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0]


# --- jobs that cannot be seen yet


def unseen_for(sweep, seconds: float) -> None:
    """The cloud accepts jobs, and denies them at first."""
    plain = sweep.cloud.describe

    def describe(name: str) -> Observation:
        seen = plain(name)
        if (sweep.clock.now() - seen.created_at).total_seconds() < seconds:
            raise JobNotFound(name)
        return seen

    sweep.cloud.describe = describe


def test_a_job_that_was_just_accepted_is_not_given_up(make_sweep):
    """Given up, its trial would get a second one, and both would write below one prefix and be paid for."""
    sweep = make_sweep(changes={"trials": 3, "parallel": 3}, script=script_of(epochs=30, step_s=60.0))
    unseen_for(sweep, 200)
    assert sweep.run() is StudyState.FINISHED
    assert [attempt.number for attempt in sweep.attempts()] == [1, 1, 1]
    assert events(sweep, "billing_missing") == []
    assert broken(sweep) == []


def test_a_job_that_never_shows_itself_is_given_up(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    first = f"{sweep.study.key}-00000-001"
    plain = sweep.cloud.describe

    def describe(name: str) -> Observation:
        if name == first:
            raise JobNotFound(name)
        return plain(name)

    sweep.cloud.describe = describe
    assert sweep.run() is StudyState.FINISHED
    assert [attempt.end for attempt in sweep.attempts()] == [AttemptEnd.SERVICE_FAULT, AttemptEnd.COMPLETED]
