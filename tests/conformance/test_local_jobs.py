"""The contract of the job service, kept by SageMaker on this machine through the real SDK and real processes."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_service import FAILING, LONG, SHORT, STUDY, JobServiceContract, World

from tuner.core.jobs import JobError, Throttled, differences
from tuner.local.billing import bill as recomputed
from tuner.local.market import write_market
from tuner.local.transport import make_client
from tuner.sagemaker.service import SageMakerJobs

# The long one ends at SIGTERM by itself, so that a stop takes no grace.
PROGRAMS = {
    SHORT: "import time; time.sleep(0.3)",
    LONG: "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(6000)",
    FAILING: "import sys; sys.exit(3)",
}


class LocalWorld(World):
    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.switches: dict[str, object] = {"grace_s": 2.0}

    def start(self, *, outages: Sequence[tuple[float, float]] = (), quota: int | None = None) -> None:
        self.state_dir.mkdir(mode=0o700)
        settings = {**self.switches, "spot_quota": {} if quota is None else {"ml.m5.large": quota}}
        (self.state_dir / "settings.json").write_text(json.dumps(settings))
        self.set_market(outages)
        self.service = self.connect()

    def connect(self) -> SageMakerJobs:
        return SageMakerJobs(make_client(self.state_dir))

    def lose_capacity(self, for_s: float) -> None:
        self.set_market([(0.0, for_s)])

    def set_market(self, outages: Sequence[tuple[float, float]]) -> None:
        """As runs of a trace, the one kind of market with outages of any length; its end is out of reach."""
        runs: list[tuple[float, float, int]] = []
        up_since = 0.0
        for start, end in outages:
            runs += [(up_since, start - up_since, 1), (start, end - start, 0)]
            up_since = end
        runs.append((up_since, 1e6, 1))
        market = {"started_at": self.now().isoformat(), "kind": "trace", "runs": runs, "speed": 1}
        write_market(self.state_dir, STUDY, market)

    def entrypoint(self, work: str) -> tuple[str, ...]:
        return ("python3", "-c", PROGRAMS[work])

    def bill(self, name: str) -> tuple[int | None, int | None]:
        bill = recomputed(self.state_dir, name)
        return bill.training_s, bill.billable_s

    def now(self) -> datetime:
        return datetime.now(UTC)

    def let_pass(self, seconds: float) -> None:
        time.sleep(seconds)

    def end(self) -> None:
        """Nothing keeps running after a test."""
        folder = self.state_dir / "jobs"
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        for name in names:
            try:
                self.service.stop(name)
                self.until_final(name)
            except JobError:  # a folder of a job that was refused
                continue


class TestLocalJobs(JobServiceContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[LocalWorld]:
        world = LocalWorld(tmp_path / "state")
        yield world
        world.end()

    def test_stop_may_be_repeated_where_the_service_refuses_it(self, world: LocalWorld) -> None:
        world.switches["stop_again"] = "reject"
        self.test_stop_may_be_repeated(world)

    def test_the_whole_request_is_what_describe_shows(self, world: LocalWorld) -> None:
        world.start()
        request = replace(
            world.request(f"{STUDY}-a", LONG),
            security_groups=("sg-1",),
            subnets=("subnet-1", "subnet-2"),
            kms_key="alias/tuner",
            network_isolation=True,
            secrets={"KEY": "MY_KEY"},
            raw={"EnableInterContainerTrafficEncryption": True},
        )
        SageMakerJobs(make_client(world.state_dir), secret=lambda _: "hunter2hunter2").create(request)
        seen = world.service.describe(request.name)
        assert seen.asked is not None
        assert differences(request, seen.asked) == ()
        # as AWS does, Describe shows the environment; what we keep of it does not
        shown = make_client(world.state_dir).describe_training_job(TrainingJobName=request.name)
        assert shown["Environment"]["KEY"] == "hunter2hunter2"
        assert "hunter2" not in repr(seen) + repr(request)

    def test_a_spot_flag_that_is_lost_on_its_way_is_seen(self, world: LocalWorld) -> None:
        """As an SDK once did, without a word."""
        world.start()
        honest = make_client(world.state_dir)

        def create(**parameters: Any) -> object:
            del parameters["EnableManagedSpotTraining"], parameters["StoppingCondition"]["MaxWaitTimeInSeconds"]
            return honest.create_training_job(**parameters)

        request = world.request(f"{STUDY}-a", LONG)
        SageMakerJobs(SimpleNamespace(create_training_job=create)).create(request)  # type: ignore[arg-type]
        seen = world.service.describe(request.name)
        assert seen.asked is not None
        assert differences(request, seen.asked) == (
            "spot: asked for True, the job has False",
            "max_wait_s: asked for 600, the job has None",
        )

    def test_too_many_calls_are_throttled_without_a_retry(self, world: LocalWorld) -> None:
        world.switches["rates"] = {"ListTrainingJobs": 0.01}
        world.start()
        with pytest.raises(Throttled, match="ListTrainingJobs"):
            [world.listed() for _ in range(20)]
        service = world.service
        assert isinstance(service, SageMakerJobs)
        assert service.calls["ListTrainingJobs"] < 20
