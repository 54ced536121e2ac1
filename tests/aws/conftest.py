"""An AWS account on this machine, with nothing except what most studies need."""

from collections.abc import Iterator
from pathlib import Path

import aws_account
import boto3
import pytest
from aws_account import BUCKET, REGION, Account, manifest, wire
from fake_account import pretend
from moto import mock_aws


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """An account with a bucket, a role and an image."""
    pretend(monkeypatch, tmp_path, REGION)
    made = Account(tmp_path / "cloud")
    with mock_aws(config={"core": {"passthrough": {"services": ["sagemaker", "servicequotas", "pricing"]}}}):
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", aws_account.session())
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        made.role("jobs")
        registry = boto3.client("ecr")
        registry.create_repository(repositoryName="train")
        registry.put_image(repositoryName="train", imageTag="1", imageManifest=manifest())
        wire(made, monkeypatch)
        yield made
