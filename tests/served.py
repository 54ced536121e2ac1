"""A local SageMaker on a port of this machine, for the tests that reach it as other programs do."""

import functools
import logging
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import botocore.session
from botocore.config import Config

from tuner.local.served.serve import LocalServer
from tuner.local.service import LocalSageMaker


@contextmanager
def served(state_dir: Path, *, s3_endpoint: str | None = None, **options) -> Iterator[LocalServer]:
    with LocalServer(LocalSageMaker(state_dir, s3_endpoint=s3_endpoint), **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@functools.cache
def session() -> boto3.session.Session:
    """A session without the profile and the files of the user who runs the tests."""
    nowhere = (None, None, os.devnull, None)
    variables = {"profile": (None, None, None, None), "config_file": nowhere, "credentials_file": nowhere}
    return boto3.session.Session(botocore_session=botocore.session.Session(session_vars=variables))


def client_of(server: LocalServer, **changes):
    """A client as a user of the service has it, who took over what `tuner local serve` printed."""
    options = {
        "endpoint_url": server.url,
        "region_name": "us-east-1",
        "aws_access_key_id": server.keys.access_key_id,
        "aws_secret_access_key": server.keys.secret_access_key,
        "config": Config(retries={"total_max_attempts": 1}),
    }
    return session().client("sagemaker", **options | changes)


@contextmanager
def moto_server() -> Iterator[str]:
    """S3, SQS, EventBridge and the rest of moto on a port; its address."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - moto is slow to import, and few need it

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # each request is a line, and each service it lacks a page
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # its state is the process's, and outlives the server: the next test of this worker would find it
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def moto_client(service: str, url: str):
    return session().client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="anybody",
        aws_secret_access_key="anything",
    )
