"""An AWS account on this machine, empty but for what most studies need."""

from collections.abc import Iterator
from pathlib import Path

import aws_account
import boto3
import pytest
from aws_account import BUCKET, REGION, Account, manifest, wire
from moto import mock_aws


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """An account with a bucket, a role and an image."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "TUNER_STORE", "TUNER_LOCAL"):
        monkeypatch.delenv(name, raising=False)
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
