"""What every job service must do, as tests: the contract of `tuner.core.jobs`, and histories.

A subclass gives a `world`, in which the same seconds pass for jobs whether they are real or simulated: a short job
trains for well under a second, a long one until it is stopped, an instance starts in well under a second. A real
world may be ten times slower than that: no test goes by when something should have happened, each waits until it has.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.factories import job_request
from tuner.core.jobs import (
    DIGEST_VARIABLE,
    CapacityUnavailable,
    HistoryRow,
    JobNameTaken,
    JobNotFound,
    JobRequest,
    JobService,
    JobStatus,
    Observation,
    RequestRejected,
    classify_failure,
    differences,
)
from tuner.core.records import AttemptEnd

STUDY = "contract"
PATIENCE_S = 120.0
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

SHORT, LONG, FAILING = "short", "long", "failing"

_LAUNCH = r"(Starting|Pending)( (Starting|Pending))*"
_RUN = r"( Downloading)? Training"


class World(ABC):
    """A job service and the time that passes for it."""

    service: JobService
    patience_s: float = PATIENCE_S

    @abstractmethod
    def start(self, *, outages: Sequence[tuple[float, float]] = (), quota: int | None = None) -> None:
        """Bring `service` up; `outages` of all spot capacity are (from, to) seconds from now."""

    @abstractmethod
    def lose_capacity(self, for_s: float) -> None:
        """All spot capacity is taken now, and is back after `for_s` seconds."""

    @abstractmethod
    def entrypoint(self, work: str) -> tuple[str, ...]: ...

    @abstractmethod
    def now(self) -> datetime: ...

    @abstractmethod
    def let_pass(self, seconds: float) -> None: ...

    @abstractmethod
    def bill(self, name: str) -> tuple[int | None, int | None]:
        """Training and billable seconds by the world's own books, not by `describe`."""

    def request(self, name: str, work: str = SHORT) -> JobRequest:
        return job_request(
            name,
            hyperparameters={"lr": "0.1"},
            environment={DIGEST_VARIABLE: f"digest-of-{name}", "TUNER_ATTEMPT": "1"},
            entrypoint=self.entrypoint(work),
            image_uri="000000000000.dkr.ecr.us-east-1.amazonaws.com/training:1",
            checkpoint_uri=f"s3://bucket/{STUDY}/checkpoints/{name}/",
            output_uri=f"s3://bucket/{STUDY}/outputs/",
            max_run_s=300,
            max_wait_s=600,
            tags={"tuner:study": STUDY},
        )

    def on_demand(self, name: str, work: str = SHORT) -> JobRequest:
        return replace(self.request(name, work), spot=False, max_wait_s=None)

    def until(self, name: str, condition: Callable[[Observation], bool]) -> Observation:
        """Let time pass until the job looks so; what it looks like then."""
        deadline = self.now() + timedelta(seconds=self.patience_s)
        while not condition(seen := self.service.describe(name)):
            assert self.now() < deadline, f"{name} never got there: {seen.status}, {story(seen)[-400:]}"
            self.let_pass(0.05)
        return seen

    def until_final(self, name: str) -> Observation:
        return self.until(name, lambda seen: seen.status.final)

    def until_row(self, name: str, status: str) -> Observation:
        return self.until(name, lambda seen: seen.secondary == status)

    def listed(self, prefix: str = STUDY, *, created: datetime = LONG_AGO, modified: datetime = LONG_AGO) -> list[str]:
        found = self.service.list_changed(prefix, created_after=created, modified_after=modified)
        return sorted(job.name for job in found)


def story(seen: Observation) -> str:
    return " ".join(row.status for row in seen.history)


def assert_sound(seen: Observation) -> None:
    """What is true of every observation."""
    assert story(seen).startswith(("Starting", "Pending"))
    assert seen.secondary == seen.history[-1].status
    assert seen.created_at <= seen.modified_at
    moments = [seen.created_at, seen.modified_at, *(row.started_at for row in seen.history)]
    assert all(moment.utcoffset() == timedelta(0) for moment in moments)
    for row, following in zip(seen.history, seen.history[1:], strict=False):
        assert row.ended_at is not None
        assert row.started_at <= row.ended_at <= following.started_at
    if not seen.status.final:
        assert seen.history[-1].ended_at is None
        assert (seen.training_s, seen.billable_s) == (None, None)


def assert_billed(seen: Observation) -> None:
    """No more is billed than passed, and something is for a job that trained."""
    assert seen.status.final
    assert seen.training_s is not None
    assert seen.billable_s is not None
    elapsed_s = (seen.modified_at - seen.created_at).total_seconds()
    assert 1 <= seen.billable_s <= seen.training_s <= max(1, elapsed_s + 0.5)  # whole seconds, of which there is one


def assert_never_started(seen: Observation) -> None:
    assert "Training" not in story(seen)
    assert (seen.training_s, seen.billable_s) == (None, None)


def assert_continues(before: Observation, after: Observation) -> None:
    """A row once shown changes only its end and its message."""

    def fixed(rows: tuple[HistoryRow, ...]) -> list[tuple[str, datetime]]:
        return [(row.status, row.started_at) for row in rows]

    assert fixed(after.history)[: len(before.history)] == fixed(before.history)
    for old, new in zip(before.history, after.history, strict=False):
        assert old.ended_at in (None, new.ended_at)


class JobServiceContract:
    """Subclass it as `Test…` with a fixture `world`."""

    # ---- create and describe

    def test_a_created_job_is_found_as_it_was_asked_for(self, world: World) -> None:
        world.start()
        before = world.now() - timedelta(seconds=1)
        request = world.request(f"{STUDY}-a", LONG)
        arn = world.service.create(request)
        seen = world.service.describe(f"{STUDY}-a")
        assert_sound(seen)
        assert seen.asked is None or differences(request, seen.asked) == ()
        assert (seen.name, seen.arn, seen.digest) == (f"{STUDY}-a", arn, f"digest-of-{STUDY}-a")
        assert arn.endswith(f":training-job/{STUDY}-a")
        assert seen.status is JobStatus.IN_PROGRESS
        assert before <= seen.created_at <= world.now() + timedelta(seconds=1)

    def test_a_name_is_taken_for_ever(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a"))
        with pytest.raises(JobNameTaken, match=f"{STUDY}-a"):
            world.service.create(world.request(f"{STUDY}-a"))
        world.until_final(f"{STUDY}-a")
        with pytest.raises(JobNameTaken):
            world.service.create(world.request(f"{STUDY}-a"))

    def test_a_rejected_request_leaves_no_job(self, world: World) -> None:
        world.start()
        with pytest.raises(RequestRejected, match=f"{STUDY}-a"):
            world.service.create(replace(world.request(f"{STUDY}-a"), max_wait_s=299))
        with pytest.raises(JobNotFound):
            world.service.describe(f"{STUDY}-a")

    def test_a_quota_refuses_for_now_and_leaves_no_job(self, world: World) -> None:
        world.start(quota=1)
        world.service.create(world.request(f"{STUDY}-a", LONG))
        with pytest.raises(CapacityUnavailable, match="service limit"):
            world.service.create(world.request(f"{STUDY}-b"))
        with pytest.raises(JobNotFound):
            world.service.describe(f"{STUDY}-b")
        world.service.stop(f"{STUDY}-a")
        world.until_final(f"{STUDY}-a")
        world.service.create(world.request(f"{STUDY}-b"))

    def test_unknown_jobs_are_not_found(self, world: World) -> None:
        world.start()
        for call in (world.service.describe, world.service.stop):
            with pytest.raises(JobNotFound, match=f"{STUDY}-nobody"):
                call(f"{STUDY}-nobody")

    # ---- how attempts end

    def test_completed(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a"))
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_billed(seen)
        assert seen.status is JobStatus.COMPLETED
        assert re.fullmatch(f"{_LAUNCH}{_RUN} Uploading Completed", story(seen))
        assert seen.failure == ""

    def test_script_error(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a", FAILING))
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_billed(seen)
        assert seen.status is JobStatus.FAILED
        assert re.fullmatch(f"{_LAUNCH}{_RUN} Failed", story(seen))
        assert classify_failure(seen.failure) is AttemptEnd.SCRIPT_ERROR
        assert len(seen.failure) <= 1024

    def test_max_wait_of_a_job_that_never_started(self, world: World) -> None:
        world.start(outages=[(0, 100_000)])
        world.service.create(replace(world.request(f"{STUDY}-a", LONG), max_run_s=1, max_wait_s=2))
        seen = world.until_final(f"{STUDY}-a")
        assert "capacity" in seen.history[0].message
        assert_sound(seen)
        assert_never_started(seen)
        assert (seen.status, seen.secondary) == (JobStatus.STOPPED, "MaxWaitTimeExceeded")
        assert re.fullmatch(f"{_LAUNCH} Stopping MaxWaitTimeExceeded", story(seen))
        assert seen.history[-1].started_at - seen.created_at >= timedelta(seconds=2)

    def test_max_wait_of_a_job_that_lost_its_capacity(self, world: World) -> None:
        world.start()
        world.service.create(replace(world.request(f"{STUDY}-a", LONG), max_run_s=20, max_wait_s=20))
        world.until_row(f"{STUDY}-a", "Training")
        world.lose_capacity(100_000)
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_billed(seen)
        assert re.fullmatch(f"{_LAUNCH}{_RUN} Interrupted( Starting)? Stopping MaxWaitTimeExceeded", story(seen))

    def test_max_run(self, world: World) -> None:
        world.start()
        world.service.create(replace(world.request(f"{STUDY}-a", LONG), max_run_s=1))
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_billed(seen)
        assert (seen.status, seen.secondary) == (JobStatus.STOPPED, "MaxRuntimeExceeded")
        assert re.fullmatch(f"{_LAUNCH}{_RUN} Stopping( Uploading)? MaxRuntimeExceeded", story(seen))
        assert (seen.training_s or 0) >= 1

    def test_max_run_counts_all_runs_together(self, world: World) -> None:
        world.start()
        world.service.create(replace(world.request(f"{STUDY}-a", LONG), max_run_s=20))
        for run in (1, 2):
            world.until(f"{STUDY}-a", lambda seen, run=run: story(seen).count("Training") == run)
            world.let_pass(1.0)
            world.lose_capacity(0.5)
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_billed(seen)
        assert seen.secondary == "MaxRuntimeExceeded"
        assert story(seen).count("Interrupted") == 2

    def test_stopped_while_training(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a", LONG))
        world.until_row(f"{STUDY}-a", "Training")
        world.service.stop(f"{STUDY}-a")
        stopping = world.service.describe(f"{STUDY}-a")
        assert stopping.status in (JobStatus.STOPPING, JobStatus.STOPPED)
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_billed(seen)
        assert_continues(stopping, seen)
        assert (seen.status, seen.secondary) == (JobStatus.STOPPED, "Stopped")
        assert re.fullmatch(f"{_LAUNCH}{_RUN} Stopping( Uploading)? Stopped", story(seen))

    def test_stopped_while_waiting(self, world: World) -> None:
        world.start(outages=[(0, 100_000)])
        world.service.create(world.request(f"{STUDY}-a"))
        world.service.stop(f"{STUDY}-a")
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_never_started(seen)
        assert re.fullmatch(f"{_LAUNCH} Stopping Stopped", story(seen))

    # ---- stop

    def test_stop_may_be_repeated(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a", LONG))
        world.until_row(f"{STUDY}-a", "Training")
        world.service.stop(f"{STUDY}-a")
        world.service.stop(f"{STUDY}-a")
        seen = world.until_final(f"{STUDY}-a")
        assert story(seen).count("Stopping") == 1

    def test_stop_does_nothing_to_a_job_that_has_ended(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a"))
        seen = world.until_final(f"{STUDY}-a")
        world.service.stop(f"{STUDY}-a")
        world.let_pass(0.3)
        assert world.service.describe(f"{STUDY}-a") == seen

    # ---- interruptions

    def test_an_interruption_takes_the_whole_pool_and_ends_no_job(self, world: World) -> None:
        world.start()
        names = [f"{STUDY}-a", f"{STUDY}-b"]
        for name in names:
            world.service.create(world.request(name, LONG))
        world.service.create(world.on_demand(f"{STUDY}-c", LONG))
        for name in (*names, f"{STUDY}-c"):
            world.until_row(name, "Training")
        world.lose_capacity(0.3)
        for name in names:
            again = world.until(name, lambda seen: story(seen).count("Training") == 2)
            assert_sound(again)
            assert again.status is JobStatus.IN_PROGRESS
            assert re.fullmatch(f"{_LAUNCH}{_RUN} Interrupted( Starting)?{_RUN}", story(again))
        assert "Interrupted" not in story(world.service.describe(f"{STUDY}-c"))

    def test_rows_once_shown_stay(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a", LONG))
        seen = [world.service.describe(f"{STUDY}-a"), world.until_row(f"{STUDY}-a", "Training")]
        world.lose_capacity(0.3)
        while story(seen[-1]).count("Training") < 2:
            world.let_pass(0.1)
            seen.append(world.service.describe(f"{STUDY}-a"))
            assert_sound(seen[-1])
            assert_continues(seen[-2], seen[-1])

    # ---- money

    def test_spot_saves_and_on_demand_does_not(self, world: World) -> None:
        world.start()
        world.service.create(replace(world.request(f"{STUDY}-a", LONG), max_run_s=4))
        world.service.create(replace(world.on_demand(f"{STUDY}-b", LONG), max_run_s=4))
        spot, on_demand = world.until_final(f"{STUDY}-a"), world.until_final(f"{STUDY}-b")
        assert_billed(spot)
        assert_billed(on_demand)
        assert (spot.billable_s or 0) < (spot.training_s or 0)
        assert on_demand.billable_s == on_demand.training_s

    def test_final_figures_equal_the_bill(self, world: World) -> None:
        world.start()
        world.service.create(replace(world.request(f"{STUDY}-a", LONG), max_run_s=3))
        world.service.create(world.on_demand(f"{STUDY}-b", FAILING))
        world.until(f"{STUDY}-a", lambda seen: "Training" in story(seen))
        world.lose_capacity(0.5)
        for name in (f"{STUDY}-a", f"{STUDY}-b"):
            seen = world.until_final(name)
            assert_billed(seen)
            assert world.bill(name) == (seen.training_s, seen.billable_s)

    # ---- lists

    def test_lists_find_names_by_their_start_only(self, world: World) -> None:
        world.start()
        for name in (f"{STUDY}-a", f"other-{STUDY}-a", f"{STUDY}x-a"):
            world.service.create(world.request(name, LONG))
        world.let_pass(1.0)
        assert world.listed(f"{STUDY}-") == [f"{STUDY}-a"]
        assert world.listed("nothing-") == []

    def test_lists_say_what_describe_says(self, world: World) -> None:
        world.start()
        arn = world.service.create(world.request(f"{STUDY}-a"))
        seen = world.until_final(f"{STUDY}-a")
        world.let_pass(1.0)
        (job,) = world.service.list_changed(STUDY, created_after=LONG_AGO, modified_after=LONG_AGO)
        assert (job.name, job.arn, job.status, job.secondary) == (seen.name, arn, seen.status, seen.secondary)
        assert (job.created_at, job.modified_at) == (seen.created_at, seen.modified_at)

    def test_lists_are_bounded_by_creation_and_by_change(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a"))
        old = world.until_final(f"{STUDY}-a")
        world.let_pass(1.1)
        world.service.create(world.request(f"{STUDY}-b", LONG))
        new = world.until_row(f"{STUDY}-b", "Training")
        world.let_pass(1.0)
        assert world.listed() == [f"{STUDY}-a", f"{STUDY}-b"]
        assert world.listed(created=new.created_at) == [f"{STUDY}-b"]
        assert world.listed(modified=new.modified_at) == [f"{STUDY}-b"]
        assert world.listed(modified=old.modified_at) == [f"{STUDY}-a", f"{STUDY}-b"]
        assert world.listed(modified=world.now() + timedelta(seconds=5)) == []

    def test_lists_show_a_change_of_an_old_job(self, world: World) -> None:
        world.start()
        world.service.create(world.request(f"{STUDY}-a", LONG))
        before = world.until_row(f"{STUDY}-a", "Training")
        world.let_pass(1.1)
        world.service.stop(f"{STUDY}-a")
        world.until_final(f"{STUDY}-a")
        world.let_pass(1.0)
        assert world.listed(modified=before.modified_at + timedelta(seconds=1)) == [f"{STUDY}-a"]
