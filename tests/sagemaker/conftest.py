"""A client of the real SDK that reaches nothing, and answers as it is told."""

from collections.abc import Iterator
from typing import Any

import botocore.exceptions
import botocore.parsers
import botocore.session
import pytest
from botocore.config import Config
from botocore.stub import Stubber


@pytest.fixture(scope="module")
def client() -> Any:
    session = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
    return session.create_client(
        "sagemaker",
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        endpoint_url="http://nowhere.invalid",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def stub(client: Any) -> Iterator[Stubber]:
    with Stubber(client) as stubber:
        yield stubber
