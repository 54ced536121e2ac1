"""Each AWS call is one record: what, how it ended, how long it took, the request id; and nothing of its content."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_account import pretend
from moto import mock_aws

from tuner.aws.connections import Aws, AwsError, ask

REGION = "us-east-1"
SECRET = "hunter2-is-a-secret"
RECORD = re.compile(r"\S+ \w+: (\d{3}( \w+)?|no answer \(\w+\))(, request \S+)? in \d+\.\d{3} s")


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    pretend(monkeypatch, tmp_path, REGION)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    with mock_aws():
        yield Aws(region=REGION)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="tuner")
    return caplog


def job(**changed: object) -> dict[str, object]:
    return {
        "TrainingJobName": "digits-00001-001",
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::123456789012:role/jobs",
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out/"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "Environment": {"WANDB_API_KEY": SECRET},
        **changed,
    }


def test_calls_are_recorded_with_request_id_duration_and_outcome(aws: Aws, log: pytest.LogCaptureFixture) -> None:
    aws.client("s3").create_bucket(Bucket="bucket")
    ask(aws.client("sagemaker").create_training_job, **job())
    with pytest.raises(AwsError):
        ask(aws.client("sagemaker").describe_training_job, TrainingJobName="none-such")
    created, made, described = log.messages
    assert created.startswith("s3 CreateBucket: 200, request ")
    assert made.startswith("sagemaker CreateTrainingJob: 200, request ")
    assert described.startswith("sagemaker DescribeTrainingJob: 400 ValidationException, request ")
    assert all(RECORD.fullmatch(message) for message in log.messages)
    assert {(record.name, record.levelno) for record in log.records} == {("tuner.aws", logging.INFO)}


def test_a_call_without_an_answer_is_recorded(
    aws: Aws, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AwsError, match="NoCredentialsError"):
        ask(aws.client("sagemaker").list_training_jobs)
    assert [message.partition(" in ")[0] for message in log.messages] == [
        "sagemaker ListTrainingJobs: no answer (NoCredentialsError)"
    ]
    assert RECORD.fullmatch(log.messages[0])


def test_no_secret_reaches_the_log(aws: Aws, log: pytest.LogCaptureFixture) -> None:
    """Neither of the request, nor of an error that repeats it, nor of the credentials, nor of an address."""
    aws.client("s3").create_bucket(Bucket="bucket")
    aws.client("s3").put_object(Bucket="bucket", Key="key", Body=SECRET.encode(), Metadata={"of": SECRET})
    assert aws.client("s3").get_object(Bucket="bucket", Key="key")["Body"].read() == SECRET.encode()
    aws.client("s3").list_objects_v2(Bucket="bucket", Prefix=SECRET)  # stands in the address
    ask(aws.client("sagemaker").create_training_job, **job())
    with pytest.raises(AwsError, match=SECRET):
        ask(aws.client("sagemaker").describe_training_job, TrainingJobName=SECRET)
    assert len(log.messages) == 6
    assert SECRET not in log.text


def test_where_nobody_listens_nothing_is_measured(aws: Aws, caplog: pytest.LogCaptureFixture) -> None:
    aws.client("s3").create_bucket(Bucket="bucket")
    assert caplog.messages == []
