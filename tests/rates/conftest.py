"""An account of moto's, with nothing in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto import mock_aws

from tuner.aws import Aws

REGION = "us-east-1"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "TUNER_STORE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield Aws(region=REGION)
