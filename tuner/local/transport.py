"""A boto3 client whose requests are answered in this process.

The transport is replaced through botocore's `before-send` event, so requests are built, validated, signed and parsed
by the real SDK while nothing leaves the machine: no credentials, no region, no network.

Rules: a handler that returned nothing would fall through to the real endpoint, so it always answers, and the endpoint
given cannot exist (which also defeats AWS_ENDPOINT_URL). The user's profile and files are never read: a profile that
does not exist would fail a client that needs none. botocore never retries by itself: retries belong to the adapter's
own clock.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError

from tuner.aws.call_log import log_calls
from tuner.core.log import logger_of
from tuner.local.faults import AnswerLost
from tuner.local.service import LocalSageMaker
from tuner.sagemaker.rules import aws_session

_ENDPOINT = "https://sagemaker.local.invalid"


def make_client(state_dir: Path, *, region: str = "us-east-1") -> Any:  # noqa: ANN401 - botocore makes the methods of a client at run time
    """A SageMaker client over a state directory."""
    session = boto3.session.Session(botocore_session=aws_session())
    client = session.client(
        "sagemaker",
        region_name=region,
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 - signs requests that nobody verifies
        endpoint_url=_ENDPOINT,
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )
    attach(client, LocalSageMaker(state_dir, region=region))
    log_calls(client.meta.events, logger_of("local"), logging.DEBUG)
    return client


def attach(client: Any, service: LocalSageMaker) -> None:  # noqa: ANN401 - as above
    """Answer everything that this client sends."""

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        operation = _text(request.headers["X-Amz-Target"]).rpartition(".")[2]
        try:
            status, body = service.handle(operation, json.loads(_text(request.body)))
        except AnswerLost as lost:
            raise ConnectionClosedError(endpoint_url=request.url) from lost
        headers = HTTPHeaders()
        headers["content-type"] = "application/x-amz-json-1.1"
        headers["x-amzn-requestid"] = "local"
        return AWSResponse(request.url, status, headers, _Raw(json.dumps(body).encode()))

    client.meta.events.register("before-send.sagemaker.*", answer)


class _Raw:
    """The body of a response, as botocore reads it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self._content


def _text(value: Any) -> str:  # noqa: ANN401 - botocore is untyped: bytes or str
    return value.decode() if isinstance(value, bytes) else str(value)
