"""Connections to AWS: errors told apart, credentials that are renewed under a running engine, never another account."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import boto3
import pytest
from aws_account import ACCOUNT, BUCKET, REGION, Account
from botocore.exceptions import ClientError, ConnectTimeoutError, NoCredentialsError, ProfileNotFound

from tuner.aws.connections import Aws, AwsError, ask
from tuner.core.jobs import CredentialsRefused
from tuner.sagemaker.service import SageMakerJobs
from tuner.storage.objects import S3Objects, StorageRefused

EXPIRED = ("ExpiredTokenException", "The security token included in the request is expired")
_SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def list_jobs(jobs: SageMakerJobs) -> None:
    jobs.list_changed("k-", created_after=_SINCE, modified_after=_SINCE)


def test_refused_credentials_are_read_anew_before_the_next_call(account: Account) -> None:
    aws = Aws(region=REGION, account=ACCOUNT)
    jobs = SageMakerJobs(aws.lasting("sagemaker"))
    list_jobs(jobs)
    before = aws.session
    account.refuse["ListTrainingJobs"] = EXPIRED
    with pytest.raises(CredentialsRefused):
        list_jobs(jobs)
    del account.refuse["ListTrainingJobs"]
    list_jobs(jobs)
    assert aws.session is not before
    list_jobs(jobs)


def test_other_refusals_keep_the_session(account: Account) -> None:
    aws = Aws(region=REGION, account=ACCOUNT)
    jobs = SageMakerJobs(aws.lasting("sagemaker"))
    account.refuse["ListTrainingJobs"] = ("AccessDeniedException", "no right to")
    with pytest.raises(CredentialsRefused):
        list_jobs(jobs)
    before = aws.session
    with pytest.raises(CredentialsRefused):
        list_jobs(jobs)
    assert aws.session is before


def test_no_client_speaks_to_another_account(account: Account) -> None:
    aws = Aws(region=REGION, account="999999999999")
    with pytest.raises(AwsError, match=f"of account {ACCOUNT}, the study runs in 999999999999") as refused:
        aws.client("sagemaker")
    assert refused.value.is_about_credentials
    with pytest.raises(CredentialsRefused, match="999999999999"):
        list_jobs(SageMakerJobs(aws.lasting("sagemaker")))
    with pytest.raises(StorageRefused, match="999999999999"):
        list(S3Objects(aws.lasting("s3")).list(f"s3://{BUCKET}/x/"))
    assert set(account.calls) == {"GetCallerIdentity"}


def test_credentials_of_another_account_in_mid_sweep_are_refused_too(account: Account) -> None:
    aws = Aws(region=REGION, account=ACCOUNT)
    jobs = SageMakerJobs(aws.lasting("sagemaker"))
    list_jobs(jobs)
    aws.doubt()
    account.caller = "999999999999"
    with pytest.raises(CredentialsRefused, match="999999999999"):
        list_jobs(jobs)


def test_objects_go_through_a_lasting_client(account: Account, tmp_path: Path) -> None:
    objects = S3Objects(Aws(region=REGION, account=ACCOUNT).lasting("s3", patient=True))
    objects.write(f"s3://{BUCKET}/a/1", b"one")
    objects.copy(f"s3://{BUCKET}/a/1", f"s3://{BUCKET}/a/2")
    objects.read_to_file(f"s3://{BUCKET}/a/2", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"one"
    assert objects.read(f"s3://{BUCKET}/a/1", 9) == b""
    assert [info.uri[-1] for info in objects.list(f"s3://{BUCKET}/a/")] == ["1", "2"]
    objects.delete([f"s3://{BUCKET}/a/1", f"s3://{BUCKET}/a/2"])
    assert list(objects.list(f"s3://{BUCKET}/a/")) == []


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "text"}}, "DoIt")


@pytest.mark.parametrize(
    ("error", "code", "about"),
    [
        (refusal("ExpiredToken"), "ExpiredToken", "credentials"),
        (refusal("AccessDenied"), "AccessDenied", "rights"),
        (refusal("Throttling"), "Throttling", ""),
        (ClientError({}, "DoIt"), "Unknown", ""),
        (NoCredentialsError(), "NoCredentialsError", "credentials"),
        (ProfileNotFound(profile="x"), "ProfileNotFound", "credentials"),
        (ConnectTimeoutError(endpoint_url="http://nowhere"), "ConnectTimeoutError", ""),
        (OSError("broken\npipe"), "OSError", ""),
    ],
)
def test_every_error_is_one_line_with_what_it_calls_for(error: Exception, code: str, about: str) -> None:
    def call() -> None:
        raise error

    with pytest.raises(AwsError) as told:
        ask(call)
    assert told.value.code == code
    assert "\n" not in str(told.value)
    assert told.value.is_about_credentials == (about == "credentials")
    assert told.value.is_about_rights == (about == "rights")


def test_without_a_region_it_says_where_to_write_one(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(AwsError, match=r"sagemaker\.region"):
        _ = Aws().region


def test_neither_boto3_nor_the_sdk_is_loaded_before_it_is_needed() -> None:
    program = """
import sys
import tuner.aws.connections, tuner.aws.image, tuner.aws.prepare, tuner.aws.preflight, tuner.aws.logs
import tuner.operations.backend, tuner.operations.look
loaded = [name for name in ("boto3", "botocore", "sagemaker", "optuna") if name in sys.modules]
sys.exit(", ".join(loaded) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_keys_that_are_renewed_in_the_users_file_are_used(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    keys = "[team]\naws_access_key_id = {}\naws_secret_access_key = s\n"
    file.write_text(keys.format("OLD"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "team")
    aws = Aws(region=REGION, account=ACCOUNT)
    jobs = SageMakerJobs(aws.lasting("sagemaker"))
    list_jobs(jobs)
    assert aws.session.get_credentials().access_key == "OLD"
    file.write_text(keys.format("NEW"))
    account.refuse["ListTrainingJobs"] = EXPIRED
    with pytest.raises(CredentialsRefused):
        list_jobs(jobs)
    account.refuse.clear()
    list_jobs(jobs)
    assert aws.session.get_credentials().access_key == "NEW"


def test_a_profile_that_vanished_is_about_credentials(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    aws = Aws(region=REGION, account=ACCOUNT)
    jobs = SageMakerJobs(aws.lasting("sagemaker"))
    list_jobs(jobs)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "gone")
    aws.doubt()
    with pytest.raises(CredentialsRefused, match="gone"):
        list_jobs(jobs)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    list_jobs(jobs)


def test_threads_that_want_a_client_at_once_get_one_that_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes are read by several threads, whose first look makes the client, on a session that is not for them."""
    inside: list[str] = []
    together: list[int] = []
    made: list[str] = []

    class Session:
        region_name = REGION
        events = mock.Mock()

        def client(self, service: str, **_: object) -> mock.Mock:
            inside.append(service)
            together.append(len(inside))
            time.sleep(0.2)  # time for others to come in
            inside.pop()
            made.append(service)
            return mock.Mock()

    monkeypatch.setattr(boto3.session, "Session", lambda **_: Session())
    aws = Aws(region=REGION)
    with ThreadPoolExecutor(4) as threads:
        clients = list(threads.map(lambda _: aws.client("s3"), range(4)))
    assert (together, made) == ([1], ["s3"])
    assert all(client is clients[0] for client in clients)
