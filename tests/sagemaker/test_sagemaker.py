"""The adapter alone: how it reads answers, and which decision it makes of each refusal."""

from collections.abc import Mapping
from datetime import UTC, timedelta

import botocore.exceptions
import botocore.parsers
import botocore.session
import pytest
from adapter import MODEL, NOON, OTHER_ZONE, SPOT, answering, described
from botocore.stub import Stubber

from tests.factories import job_summary
from tuner.core.jobs import (
    CapacityUnavailable,
    CredentialsRefused,
    HistoryRow,
    JobError,
    JobNameTaken,
    JobNotFound,
    JobStatus,
    RequestRejected,
    RoleNotReady,
    ServiceUnavailable,
    Throttled,
)
from tuner.sagemaker.service import SageMakerJobs


def call(jobs: SageMakerJobs, operation: str) -> object:
    return {
        "create_training_job": lambda: jobs.create(SPOT),
        "describe_training_job": lambda: jobs.describe(SPOT.name),
        "list_training_jobs": lambda: jobs.list_changed("digits-", created_after=NOON, modified_after=NOON),
        "stop_training_job": lambda: jobs.stop(SPOT.name),
    }[operation]()


# ---- refusals: one row for each text of SageMaker's that a decision hangs on

QUOTA = (
    "The account-level service limit 'ml.g5.2xlarge for training job usage' is 0 Instances, with current utilization "
    "of 0 Instances and a request delta of 1 Instances. Please use AWS Service Quotas to request an increase for this "
    "quota. If AWS Service Quotas is not available, contact AWS support to request an increase for this quota."
)
CREATE, DESCRIBE, LIST, STOP = "create_training_job", "describe_training_job", "list_training_jobs", "stop_training_job"
INVALID = "ValidationException"
REFUSALS: list[tuple[str, str, str, int, type[JobError]]] = [
    (CREATE, "ResourceLimitExceeded", QUOTA, 400, CapacityUnavailable),
    (CREATE, "ResourceLimitExceeded", "something else of yours is used up", 400, CapacityUnavailable),
    (
        CREATE,
        "ResourceLimitExceeded",
        "The account-level service limit 'Longest run time for a training job' is 432000 Seconds",
        400,
        RequestRejected,
    ),
    (CREATE, "ResourceInUse", "Training job names must be unique within an AWS account and region", 400, JobNameTaken),
    (CREATE, "ResourceNotFound", "no such thing", 400, RequestRejected),
    (CREATE, INVALID, "Invalid MaxWaitTimeInSeconds. It is only …", 400, RequestRejected),
    (CREATE, INVALID, "Requested image … not found.", 400, RequestRejected),
    (CREATE, INVALID, "Could not assume role arn:aws:iam::1:role/x. Please ensure …", 400, RoleNotReady),
    (CREATE, INVALID, "Unable to assume role", 400, RoleNotReady),
    (CREATE, "AccessDeniedException", "not authorized to perform: iam:PassRole", 400, CredentialsRefused),
    (DESCRIBE, INVALID, "Requested resource not found.", 400, JobNotFound),
    (DESCRIBE, "ResourceNotFound", "", 400, JobNotFound),
    (STOP, INVALID, "Requested resource not found.", 400, JobNotFound),
    *(
        (operation, code, text, 400, kind)
        for operation in (CREATE, DESCRIBE, LIST, STOP)
        for code, text, kind in (
            ("ThrottlingException", "Rate exceeded", Throttled),
            ("ExpiredTokenException", "The security token included in the request is expired", CredentialsRefused),
            ("UnrecognizedClientException", "The security token … is invalid", CredentialsRefused),
            ("AccessDeniedException", "User … is not authorized to perform …", CredentialsRefused),
            ("ValidationException", "something that was never seen", RequestRejected),
        )
    ),
    # what nobody has seen is kept whole and judged by its status
    (CREATE, "InternalFailure", "", 500, ServiceUnavailable),
    (CREATE, "ServiceUnavailable", "", 503, ServiceUnavailable),
    *(
        (CREATE, "NeverSeen", "of this kind, with all its words", status, kind)
        for status, kind in (
            (502, ServiceUnavailable),
            (429, Throttled),
            (403, CredentialsRefused),
            (401, CredentialsRefused),
            (400, RequestRejected),
        )
    ),
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


def test_what_the_sdk_refuses_to_send_is_rejected() -> None:
    def fail(**_: object) -> None:
        raise botocore.exceptions.ParamValidationError(report="Unknown parameter in input: NotYet")

    with pytest.raises(RequestRejected, match="NotYet"):
        call(answering(create_training_job=fail), "create_training_job")


# ---- quotas


def quota(of: str, limit: str) -> str:
    used = f"with current utilization of {limit} Instances and a request delta of 1 Instances."
    return f"The account-level service limit '{of}' is {limit} Instances, {used}"


@pytest.mark.parametrize(
    ("text", "limit", "used"),
    [
        (QUOTA, 0, 0),
        (quota("ml.g5.xlarge for spot training job usage", "12"), 12, 12),
        (quota("ml.p4d.24xlarge for training job usage", "1,000"), 1000, 1000),
        (quota("ml.m5.large for spot training job usage", "1").replace("Instances", "Instance"), 1, 1),
        # not of one type: whether another type would be refused is not said
        (quota("Total number of instances across training jobs", "20"), None, None),
        ("in words that nobody has seen", None, None),
    ],
)
def test_a_quota_s_limit_is_read_as_a_hint(stub: Stubber, text: str, limit: int | None, used: int | None) -> None:
    stub.add_client_error("create_training_job", "ResourceLimitExceeded", text, 400)
    with pytest.raises(CapacityUnavailable) as caught:
        SageMakerJobs(stub.client).create(SPOT)
    assert (caught.value.limit, caught.value.used) == (limit, used)


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
        ModelArtifacts=MODEL,
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
    assert found[1] == job_summary(
        "digits-1",
        arn="arn:aws:sagemaker:us-east-1:000000000000:training-job/digits-1",
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
