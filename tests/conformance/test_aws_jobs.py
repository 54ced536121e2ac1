"""The contract of the job service, asked of AWS itself. It costs money, so it is skipped unless it is asked for:

    TUNER_TEST_AWS=1 TUNER_TEST_ROLE=arn:aws:iam::…:role/… TUNER_TEST_BUCKET=… TUNER_TEST_IMAGE=… \
        python -m pytest tests/conformance/test_aws_jobs.py -x

Credentials and region are the environment's; the image needs a `python3`. What it may cost at most is printed before
the first job, from its own limits and the rate card. What only a world of our own can bring about (outages, quotas, a
second set of books) is skipped.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from job_service import JobServiceContract, World
from test_local_jobs import PROGRAMS

from tuner.aws.connections import Aws
from tuner.core.jobs import JobError, JobRequest, JobService, JobSummary, Observation
from tuner.core.prices import RateCard, cost_microusd
from tuner.sagemaker.service import SageMakerJobs

INSTANCE = "ml.m5.large"
JOBS_MAX = 40  # more than the contract makes
# of one job, should the service read every limit against us: its wait is its longest, then grace and upload
SECONDS_MAX = 600 + 120 + 300
# An account has a few calls a second for everybody; jobs take minutes to start.
POLL_S = 5.0

pytestmark = [
    pytest.mark.skipif(os.environ.get("TUNER_TEST_AWS") != "1", reason="costs money on AWS: TUNER_TEST_AWS=1 runs it"),
    pytest.mark.timeout(3600),
]


def ceiling_usd(region: str) -> float:
    """The most that all jobs together may bill."""
    rate = RateCard({}).rate(INSTANCE, region).microusd_per_hour
    return JOBS_MAX * cost_microusd(SECONDS_MAX, 1, rate) / 1_000_000


class Renamed:
    """A job service in which each test has all names to itself: in an account they are taken for ever."""

    made = 0

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._mark = f"t{secrets.token_hex(4)}-"

    def create(self, request: JobRequest) -> str:
        assert Renamed.made < JOBS_MAX, "more jobs than the printed ceiling allows for"
        Renamed.made += 1
        return self._plain(self._service.create(replace(request, name=self._mark + request.name)))

    def describe(self, name: str) -> Observation:
        seen = self._service.describe(self._mark + name)
        return replace(seen, name=self._plain(seen.name), arn=self._plain(seen.arn), asked=self._asked(seen.asked))

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime) -> list[JobSummary]:
        # the whole account's history is nobody's: this test began today
        began = max(created_after, datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
        found = self._service.list_changed(self._mark + prefix, created_after=began, modified_after=modified_after)
        return [replace(job, name=self._plain(job.name), arn=self._plain(job.arn)) for job in found]

    def stop(self, name: str) -> None:
        self._service.stop(self._mark + name)

    def _plain(self, text: str) -> str:
        return text.replace(self._mark, "")

    def _asked(self, asked: JobRequest | None) -> JobRequest | None:
        return None if asked is None else replace(asked, name=self._plain(asked.name))


class AwsWorld(World):
    patience_s = 1800.0

    def __init__(self, jobs: SageMakerJobs) -> None:
        self.service = Renamed(jobs)
        self._names: list[str] = []

    def start(self, *, outages: Sequence[tuple[float, float]] = (), quota: int | None = None) -> None:
        if outages or quota is not None:
            pytest.skip("AWS's capacity and quotas are its own")

    def lose_capacity(self, for_s: float) -> None:
        pytest.skip(f"nobody takes AWS's capacity for {for_s} s")

    def request(self, name: str, work: str = "short") -> JobRequest:
        self._names.append(name)
        bucket = os.environ["TUNER_TEST_BUCKET"]
        return replace(
            super().request(name, work),
            image_uri=os.environ["TUNER_TEST_IMAGE"],
            role_arn=os.environ["TUNER_TEST_ROLE"],
            checkpoint_uri=f"s3://{bucket}/tuner-contract/{secrets.token_hex(4)}/",
            output_uri=f"s3://{bucket}/tuner-contract/outputs/",
            instance_type=INSTANCE,
        )

    def entrypoint(self, work: str) -> tuple[str, ...]:
        return ("python3", "-c", PROGRAMS[work])

    def bill(self, name: str) -> tuple[int | None, int | None]:
        pytest.skip(f"AWS keeps no second set of books for {name}")

    def now(self) -> datetime:
        return datetime.now(UTC)

    def let_pass(self, seconds: float) -> None:
        time.sleep(max(seconds, POLL_S))

    def end(self) -> None:
        """Nothing goes on billing after a test."""
        for name in self._names:
            try:
                self.service.stop(name)
            except JobError:  # it was refused
                continue


@pytest.fixture(scope="module")
def jobs(request: pytest.FixtureRequest) -> SageMakerJobs:
    aws = Aws()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nAWS: at most {JOBS_MAX} jobs on {INSTANCE} in {aws.region}, at most ${ceiling_usd(aws.region):.2f}")
    return SageMakerJobs(aws.client("sagemaker"))


class TestAwsJobs(JobServiceContract):
    @pytest.fixture
    def world(self, jobs: SageMakerJobs) -> Iterator[AwsWorld]:
        world = AwsWorld(jobs)
        yield world
        world.end()
