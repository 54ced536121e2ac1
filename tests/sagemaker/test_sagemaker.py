"""The adapter alone: what it sends, how it reads answers, and which decision it makes of each refusal."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import botocore.exceptions
import botocore.parsers
import botocore.session
import pytest
from botocore.config import Config
from botocore.stub import Stubber

from tuner.jobs import (
    CapacityUnavailable,
    Channel,
    CredentialsRefused,
    HistoryRow,
    JobError,
    JobNameTaken,
    JobNotFound,
    JobRequest,
    JobStatus,
    JobSummary,
    MetricDefinition,
    RequestRejected,
    ServiceUnavailable,
    Throttled,
)
from tuner.sagemaker import SageMakerJobs, request_parameters

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ARN = "arn:aws:sagemaker:us-east-1:000000000000:training-job/digits-00001-001"
SPOT = JobRequest(
    name="digits-00001-001",
    hyperparameters={"lr": "0.1", "hidden": "64"},
    environment={"TUNER_DIGEST": "d1", "TUNER_TRIAL": "1", "WANDB_API_KEY": "hunter2hunter2"},
    entrypoint=("python3", "/opt/ml/input/data/code/tuner/bootstrap.py"),
    image_uri="763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.5.1-gpu-py311",
    channels=(Channel(name="code", uri="s3://b/code/"), Channel(name="train", uri="s3://b/data/", mode="FastFile")),
    checkpoint_uri="s3://b/digits/00001/",
    output_uri="s3://b/outputs/",
    instance_type="ml.g5.xlarge",
    instance_count=2,
    volume_gb=30,
    spot=True,
    max_run_s=3600,
    max_wait_s=14400,
    role_arn="arn:aws:iam::000000000000:role/training",
    tags={"tuner:study": "digits"},
    metrics=(MetricDefinition(name="acc", regex="acc=([0-9.]+)"),),
)
BARE = replace(SPOT, entrypoint=(), channels=(), metrics=(), environment={}, hyperparameters={}, tags={})
ON_DEMAND = replace(SPOT, spot=False, max_wait_s=None)
OTHER_ZONE = timezone(timedelta(hours=9))


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


def answering(**answers: Callable[..., Any]) -> SageMakerJobs:
    """The adapter on a client whose operations are these functions."""
    names = ("create_training_job", "describe_training_job", "list_training_jobs", "stop_training_job")
    return SageMakerJobs(SimpleNamespace(**{name: answers.get(name) for name in names}))  # type: ignore[arg-type]


def call(jobs: SageMakerJobs, operation: str) -> object:
    return {
        "create_training_job": lambda: jobs.create(SPOT),
        "describe_training_job": lambda: jobs.describe(SPOT.name),
        "list_training_jobs": lambda: jobs.list_changed("digits-", created_after=NOON, modified_after=NOON),
        "stop_training_job": lambda: jobs.stop(SPOT.name),
    }[operation]()


# ---- requests


@pytest.mark.parametrize("request_", [SPOT, BARE, ON_DEMAND])
def test_every_request_passes_botocore_s_validation_and_gives_the_arn(stub: Stubber, request_: JobRequest) -> None:
    stub.add_response("create_training_job", {"TrainingJobArn": ARN}, request_parameters(request_))
    jobs = SageMakerJobs(stub.client)
    assert jobs.create(request_) == ARN
    assert jobs.calls == {"CreateTrainingJob": 1}


def test_a_spot_request_says_all_that_it_was_given() -> None:
    assert request_parameters(SPOT) == {
        "TrainingJobName": "digits-00001-001",
        "HyperParameters": {"lr": "0.1", "hidden": "64"},
        "Environment": {"TUNER_DIGEST": "d1", "TUNER_TRIAL": "1", "WANDB_API_KEY": "hunter2hunter2"},
        "AlgorithmSpecification": {
            "TrainingImage": SPOT.image_uri,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/tuner/bootstrap.py"],
            "MetricDefinitions": [{"Name": "acc", "Regex": "acc=([0-9.]+)"}],
        },
        "InputDataConfig": [
            {
                "ChannelName": name,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": uri,
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
                "InputMode": mode,
            }
            for name, uri, mode in (("code", "s3://b/code/", "File"), ("train", "s3://b/data/", "FastFile"))
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://b/outputs/"},
        "CheckpointConfig": {"S3Uri": "s3://b/digits/00001/", "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 14400},
        "EnableManagedSpotTraining": True,
        "RoleArn": SPOT.role_arn,
        "Tags": [{"Key": "tuner:study", "Value": "digits"}],
    }


def test_on_demand_has_no_max_wait_and_empty_lists_are_left_out() -> None:
    assert request_parameters(ON_DEMAND)["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert request_parameters(ON_DEMAND)["EnableManagedSpotTraining"] is False
    assert "InputDataConfig" not in request_parameters(BARE)
    assert request_parameters(BARE)["AlgorithmSpecification"].keys() == {"TrainingImage", "TrainingInputMode"}


def test_a_spot_request_without_max_wait_is_a_bug_of_ours() -> None:
    with pytest.raises(AssertionError):
        request_parameters(replace(SPOT, max_wait_s=None))


# ---- refusals: one row for each text of SageMaker's that a decision hangs on

REFUSALS: list[tuple[str, str, str, int, type[JobError]]] = [
    (
        "create_training_job",
        "ResourceLimitExceeded",
        "The account-level service limit 'ml.g5.2xlarge for training job usage' is 0 Instances, with …",
        400,
        CapacityUnavailable,
    ),
    ("create_training_job", "ResourceInUse", "Training job names must be unique within an account", 400, JobNameTaken),
    ("create_training_job", "ResourceNotFound", "no such thing", 400, RequestRejected),
    ("create_training_job", "ThrottlingException", "Rate exceeded", 400, Throttled),
    ("create_training_job", "ValidationException", "Invalid MaxWaitTimeInSeconds. It is only …", 400, RequestRejected),
    ("create_training_job", "ValidationException", "Requested image … not found.", 400, RequestRejected),
    ("create_training_job", "ValidationException", "Could not assume role arn:… .", 400, CredentialsRefused),
    ("create_training_job", "ExpiredTokenException", "The security token is expired", 400, CredentialsRefused),
    ("create_training_job", "UnrecognizedClientException", "The security token is invalid", 400, CredentialsRefused),
    (
        "create_training_job",
        "AccessDeniedException",
        "not authorized to perform: iam:PassRole",
        400,
        CredentialsRefused,
    ),
    ("create_training_job", "InternalFailure", "", 500, ServiceUnavailable),
    ("create_training_job", "ServiceUnavailable", "", 503, ServiceUnavailable),
    ("create_training_job", "NeverSeen", "", 502, ServiceUnavailable),
    ("create_training_job", "NeverSeen", "", 429, Throttled),
    ("create_training_job", "NeverSeen", "", 403, CredentialsRefused),
    ("create_training_job", "NeverSeen", "", 400, RequestRejected),
    ("describe_training_job", "ValidationException", "Requested resource not found.", 400, JobNotFound),
    ("describe_training_job", "ResourceNotFound", "", 400, JobNotFound),
    ("describe_training_job", "ThrottlingException", "Rate exceeded", 400, Throttled),
    ("describe_training_job", "AccessDeniedException", "", 400, CredentialsRefused),
    ("list_training_jobs", "ThrottlingException", "Rate exceeded", 400, Throttled),
    ("list_training_jobs", "ExpiredTokenException", "", 400, CredentialsRefused),
    ("stop_training_job", "ValidationException", "Requested resource not found.", 400, JobNotFound),
    ("stop_training_job", "AccessDeniedException", "", 400, CredentialsRefused),
    ("stop_training_job", "ThrottlingException", "Rate exceeded", 400, Throttled),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: "-".join(refusal[:2]))
def test_refusals(stub: Stubber, refusal: tuple[str, str, str, int, type[JobError]]) -> None:
    operation, code, text, status, kind = refusal
    stub.add_client_error(operation, code, text, status)
    jobs = SageMakerJobs(stub.client)
    with pytest.raises(JobError) as caught:
        call(jobs, operation)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert f"{code}: {text}" in message
    assert "digits-" in message
    assert message.endswith(")")  # what it means
    assert sum(jobs.calls.values()) == 1


@pytest.mark.parametrize("status", ["Completed", "Failed", "Stopped", "Stopping"])
def test_stopping_what_has_ended_does_nothing(stub: Stubber, status: str) -> None:
    text = f"The request was rejected because the training job is in status {status}."
    stub.add_client_error("stop_training_job", "ValidationException", text, 400)
    SageMakerJobs(stub.client).stop(SPOT.name)


TRANSPORT: list[tuple[Exception, type[JobError]]] = [
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), ServiceUnavailable),
    (botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x"), ServiceUnavailable),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), ServiceUnavailable),
    (botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"), ServiceUnavailable),
    (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), ServiceUnavailable),
    (botocore.parsers.ResponseParserError("no JSON"), ServiceUnavailable),
    (ConnectionResetError(), ServiceUnavailable),
    (botocore.exceptions.NoCredentialsError(), CredentialsRefused),
    (botocore.exceptions.UnauthorizedSSOTokenError(), CredentialsRefused),
    (botocore.exceptions.TokenRetrievalError(provider="sso", error_msg="expired"), CredentialsRefused),
    (botocore.exceptions.CredentialRetrievalError(provider="process", error_msg="exit 1"), CredentialsRefused),
]


@pytest.mark.parametrize(
    ("error", "kind"), TRANSPORT, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
@pytest.mark.parametrize("operation", ["create_training_job", "stop_training_job"])
def test_transport_faults(error: Exception, kind: type[JobError], operation: str) -> None:
    def fail(**_: object) -> None:
        raise error

    with pytest.raises(JobError) as caught:
        call(answering(**{operation: fail}), operation)
    assert type(caught.value) is kind
    assert type(error).__name__ in str(caught.value)


def test_a_request_that_the_sdk_refuses_to_send_is_rejected(client: Any) -> None:
    with pytest.raises(RequestRejected, match="RoleArn"):
        SageMakerJobs(client).create(replace(SPOT, role_arn="short"))


def test_a_bug_is_not_an_operating_error() -> None:
    def broken(**_: object) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        call(answering(describe_training_job=broken), "describe_training_job")


def test_secrets_that_sagemaker_echoes_are_not_repeated(stub: Stubber) -> None:
    text = "Value '{TUNER_TRIAL=1, WANDB_API_KEY=hunter2hunter2}' at 'environment' failed to satisfy constraint"
    stub.add_client_error("create_training_job", "ValidationException", text, 400)
    with pytest.raises(RequestRejected) as caught:
        SageMakerJobs(stub.client).create(SPOT)
    assert "WANDB_API_KEY=***" in str(caught.value)
    assert "TUNER_TRIAL=1" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None  # a traceback does not show it either
    assert caught.value.__suppress_context__


# ---- answers


def described(**changes: object) -> Mapping[str, object]:
    reply = {
        "TrainingJobName": SPOT.name,
        "TrainingJobArn": ARN,
        "ModelArtifacts": {},
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
        "StoppingCondition": {},
        "CreationTime": NOON.astimezone(OTHER_ZONE),
        **changes,
    }
    return {key: value for key, value in reply.items() if value is not None}


def test_an_answer_becomes_an_observation(stub: Stubber) -> None:
    minute = timedelta(minutes=1)
    rows = [
        {"Status": "Starting", "StartTime": NOON, "EndTime": NOON + minute, "StatusMessage": "Starting …"},
        {"Status": "SomethingNew", "StartTime": (NOON + minute).astimezone(OTHER_ZONE)},
    ]
    reply = described(
        TrainingJobStatus="Completed",
        SecondaryStatus="Completed",
        LastModifiedTime=(NOON + 9 * minute).astimezone(OTHER_ZONE),
        SecondaryStatusTransitions=rows,
        Environment={"TUNER_DIGEST": "d1"},
        TrainingTimeInSeconds=500,
        BillableTimeInSeconds=100,
        ModelArtifacts={"S3ModelArtifacts": "s3://b/outputs/x/output/model.tar.gz"},
    )
    stub.add_response("describe_training_job", reply, {"TrainingJobName": SPOT.name})
    seen = SageMakerJobs(stub.client).describe(SPOT.name)
    assert seen.status is JobStatus.COMPLETED
    assert seen.history == (
        HistoryRow(status="Starting", started_at=NOON, ended_at=NOON + minute, message="Starting …"),
        HistoryRow(status="SomethingNew", started_at=NOON + minute),
    )
    assert (seen.created_at, seen.modified_at) == (NOON, NOON + 9 * minute)
    assert seen.created_at.tzinfo is seen.modified_at.tzinfo is seen.history[1].started_at.tzinfo is UTC
    assert (seen.digest, seen.training_s, seen.billable_s) == ("d1", 500, 100)
    assert seen.model_uri == "s3://b/outputs/x/output/model.tar.gz"


def test_what_is_not_there_is_none() -> None:
    seen = answering(describe_training_job=lambda **_: described()).describe(SPOT.name)
    assert (seen.digest, seen.training_s, seen.billable_s, seen.model_uri) == (None, None, None, None)
    assert (seen.history, seen.failure, seen.modified_at) == ((), "", NOON)


@pytest.mark.parametrize(
    "reply",
    [
        {},  # what status 200 with a page of a proxy parses to
        *(
            described(**{key: None})
            for key in ("TrainingJobArn", "TrainingJobStatus", "SecondaryStatus", "CreationTime")
        ),
        described(TrainingJobStatus="Levitating"),
        described(SecondaryStatusTransitions=[{"Status": "Starting"}]),
    ],
)
def test_an_answer_without_what_it_must_have_did_not_arrive(reply: Mapping[str, object]) -> None:
    with pytest.raises(ServiceUnavailable):
        answering(describe_training_job=lambda **_: reply).describe(SPOT.name)


@pytest.mark.parametrize("operation", ["create_training_job", "list_training_jobs"])
def test_empty_answers_did_not_arrive(operation: str) -> None:
    with pytest.raises(ServiceUnavailable):
        call(answering(**{operation: lambda **_: {}}), operation)


# ---- lists


def entry(name: str, *, created: int = 0, modified: int = 0) -> dict[str, object]:
    return {
        "TrainingJobName": name,
        "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{name}",
        "CreationTime": NOON + timedelta(seconds=created),
        "LastModifiedTime": (NOON + timedelta(seconds=modified)).astimezone(OTHER_ZONE),
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
    }


def test_lists_are_paged_filtered_and_freed_of_repetitions(stub: Stubber) -> None:
    query = {
        "NameContains": "digits-",
        "CreationTimeAfter": NOON - timedelta(seconds=1),
        "SortBy": "CreationTime",
        "SortOrder": "Descending",
        "MaxResults": 100,
    }
    first = [entry("digits-2", created=9, modified=9), entry("my-digits-1", created=9, modified=9)]
    last = [
        entry("digits-2", created=9, modified=9),  # pushed onto this page by a job created meanwhile
        entry("digits-1", created=0, modified=5),
        entry("digits-0", created=0, modified=4),  # unchanged
        entry("digits-old", created=-1, modified=9),
    ]
    stub.add_response("list_training_jobs", {"TrainingJobSummaries": first, "NextToken": "a"}, query)
    empty: dict[str, object] = {"TrainingJobSummaries": [], "NextToken": "b"}  # documented: pages may be empty
    stub.add_response("list_training_jobs", empty, {**query, "NextToken": "a"})
    stub.add_response("list_training_jobs", {"TrainingJobSummaries": last}, {**query, "NextToken": "b"})
    jobs = SageMakerJobs(stub.client)
    found = jobs.list_changed("digits-", created_after=NOON, modified_after=NOON + timedelta(seconds=5))
    assert [job.name for job in found] == ["digits-2", "digits-1"]
    assert found[1] == JobSummary(
        name="digits-1",
        arn="arn:aws:sagemaker:us-east-1:000000000000:training-job/digits-1",
        status=JobStatus.IN_PROGRESS,
        secondary="Training",
        created_at=NOON,
        modified_at=NOON + timedelta(seconds=5),
    )
    assert jobs.calls == {"ListTrainingJobs": 3}


def test_a_list_that_never_ends_is_given_up() -> None:
    page = {"TrainingJobSummaries": [], "NextToken": "again"}
    with pytest.raises(ServiceUnavailable, match="twice"):
        call(answering(list_training_jobs=lambda **_: page), "list_training_jobs")


def test_errors_of_lists_are_raised_by_the_call_itself(stub: Stubber) -> None:
    stub.add_client_error("list_training_jobs", "ThrottlingException", "Rate exceeded", 400)
    with pytest.raises(Throttled):  # and not when somebody iterates
        SageMakerJobs(stub.client).list_changed("digits-", created_after=NOON, modified_after=NOON)
