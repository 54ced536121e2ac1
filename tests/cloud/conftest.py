"""moto for everything but training jobs, `tuner local serve` for those."""

import json
import os
import shlex
from pathlib import Path

import pytest
from cloud_account import Account
from served import moto_server

from tuner.local.processes import end_all_of

TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


@pytest.fixture
def account(tmp_path):
    with moto_server() as url:
        made = Account(tmp_path, url)
        made.client("s3").create_bucket(Bucket="sweeps")
        made.client("iam").create_role(RoleName="training", AssumeRolePolicyDocument=json.dumps(TRUST))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TUNER_", "AWS_"))}
        made.environment = {
            **kept,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "NO_COLOR": "1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "anything",
        }
        yield made


@pytest.fixture
def service(account):
    """The local SageMaker as a process of its own, and the user's shell set up for it."""
    words = ["local", "serve", "--dir", str(account.state_dir), "--s3-endpoint", account.moto_url]
    words += ["--events-endpoint", account.moto_url, "--logs-endpoint", account.moto_url]
    started = account.program(*words)
    try:
        for _ in range(5):
            name, _, value = shlex.split(started.until(lambda line: line.startswith("export")))[1].partition("=")
            account.environment[name] = value
        yield started
    finally:
        started.kill()
        for name in account.jobs():
            end_all_of(account.state_dir / "jobs" / name)
