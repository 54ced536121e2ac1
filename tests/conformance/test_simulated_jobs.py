"""The contract of the job service, kept by the simulation."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from job_service import FAILING, SHORT, STUDY, JobServiceContract, World, assert_never_started, assert_sound, story

from tuner.core.clock import VirtualClock
from tuner.core.jobs import JobRequest, JobStatus, classify_failure
from tuner.core.records import AttemptEnd
from tuner.simulator.cloud import SimulatedCloud
from tuner.simulator.parts import Script, SimulatorSettings


def script(request: JobRequest) -> Script:
    """What the request's entrypoint says, in the times of the contract."""
    work = request.entrypoint[0]
    return Script(
        epochs=3 if work == SHORT else 600,
        step_s=0.1,
        start_s=0.2,
        download_s=0.1,
        upload_s=0.1,
        failure="AlgorithmError: ExecuteUserScriptError: ExitCode 3" if work == FAILING else None,
        fails_at=2,
    )


class SimulatedWorld(World):
    def start(self, *, outages: Sequence[tuple[float, float]] = (), quota: int | None = None) -> None:
        self.clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.service = self.cloud = SimulatedCloud(
            self.clock, 7, scripts=script, outages=outages, settings=SimulatorSettings(quota=quota, stop_grace_s=1.0)
        )

    def lose_capacity(self, for_s: float) -> None:
        self.cloud._capacity_goes(None)
        self.cloud._schedule.plan(self.cloud._now + for_s, lambda: self.cloud._capacity_comes(None), None, None)

    def entrypoint(self, work: str) -> tuple[str, ...]:
        return (work,)

    def bill(self, name: str) -> tuple[int | None, int | None]:
        bill = self.cloud.bill(name)
        return bill.training_s, bill.billable_s

    def now(self) -> datetime:
        return self.clock.now()

    def let_pass(self, seconds: float) -> None:
        self.clock.wait(until := self.clock.now() + timedelta(seconds=seconds), due=until)


class TestSimulatedJobs(JobServiceContract):
    @pytest.fixture
    def world(self) -> SimulatedWorld:
        return SimulatedWorld()

    # The ends that only a cloud can bring about.

    @pytest.mark.parametrize(
        ("reason", "end"),
        [
            ("CapacityError: Unable to provision requested ML compute capacity.", AttemptEnd.CAPACITY),
            ("InternalServerError: We encountered an internal error. Please try again.", AttemptEnd.SERVICE_FAULT),
            ("ClientError: Artifact upload failed: access denied", AttemptEnd.SCRIPT_ERROR),
            ("SomethingNew: who knows", AttemptEnd.SERVICE_FAULT),
        ],
    )
    def test_failed_before_training(self, world: SimulatedWorld, reason: str, end: AttemptEnd) -> None:
        world.start(outages=[(0, 100_000)])
        world.service.create(world.request(f"{STUDY}-a"))
        world.cloud.fail(f"{STUDY}-a", reason)
        seen = world.until_final(f"{STUDY}-a")
        assert_sound(seen)
        assert_never_started(seen)
        assert story(seen) == "Starting Failed"
        assert (seen.status, seen.failure) == (JobStatus.FAILED, reason)
        assert classify_failure(seen.failure) is end
