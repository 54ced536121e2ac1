"""The contract of the job service, kept by SageMaker on a port of this machine, found as a user's programs find it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from job_service import JobServiceContract
from served import served
from test_local_jobs import LocalWorld

from tuner.sagemaker.service import SageMakerJobs


class HttpWorld(LocalWorld):
    def __init__(self, state_dir: Path, environment: pytest.MonkeyPatch) -> None:
        super().__init__(state_dir)
        self._environment = environment
        self._open = ExitStack()

    def connect(self) -> SageMakerJobs:
        server = self._open.enter_context(served(self.state_dir))
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            self._environment.delenv(name, raising=False)
        for name, value in {
            "AWS_ENDPOINT_URL_SAGEMAKER": server.url,
            "AWS_ACCESS_KEY_ID": server.keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": server.keys.secret_access_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            self._environment.setenv(name, value)
        session = boto3.session.Session()
        return SageMakerJobs(session.client("sagemaker", config=Config(retries={"total_max_attempts": 1})))

    def end(self) -> None:
        super().end()
        self._open.close()


class TestHttpJobs(JobServiceContract):
    @pytest.fixture
    def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpWorld]:
        world = HttpWorld(tmp_path / "state", monkeypatch)
        yield world
        world.end()
