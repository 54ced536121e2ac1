"""An account of moto's, with nothing in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_account import pretend
from moto import mock_aws

from tuner.aws.connections import Aws

REGION = "us-east-1"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    pretend(monkeypatch, tmp_path, REGION)
    with mock_aws():
        yield Aws(region=REGION)
