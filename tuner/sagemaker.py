"""The job service on a boto3 SageMaker client: requests, paging, error translation, history and billing.

It exists so that nothing else knows how SageMaker spells things. The client is given: it may be AWS's or the local
service's, and this module cannot tell which.

Rules:
- Every error is translated here, once, into a class of `tuner.jobs`; SageMaker's own text stays in the message, beside
  what it means, except values of the job's environment, which may be secrets and which SageMaker echoes.
- An answer that misses what it must have is an answer that did not arrive: a proxy's page with status 200 parses to
  nothing. Statuses of the history that we do not know are passed on: SageMaker says that they may come.
- Lists are bounded by creation time. Filtering by modification time in the service walks every page of the account
  until it is throttled, so that filter is applied here; so is the prefix, since `NameContains` also finds it inside.
- No retries: the caller has a clock, this module has none. Give it a client with `total_max_attempts=1`, else the SDK
  sleeps in real time and a create whose response was lost finds its own name taken.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeAlias

from tuner.jobs import (
    DIGEST_VARIABLE,
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
    Observation,
    RequestRejected,
    ServiceUnavailable,
    Throttled,
)

CHECKPOINT_PATH = "/opt/ml/checkpoints"

_PAGE = 100  # the most that a list gives; its default of 10 makes ten times the calls, of which an account has 2/s
_CREATION_SLACK = timedelta(seconds=1)  # "created after" is exclusive, and how finely it compares is not documented
_SECRET_LENGTH = 6  # shorter values of an environment are numbers and switches, and stand in every other text

_Reply: TypeAlias = Mapping[str, Any]

_BY_CODE: dict[str, type[JobError]] = {
    "ResourceLimitExceeded": CapacityUnavailable,
    "ResourceInUse": JobNameTaken,
    "ValidationException": RequestRejected,
    "InternalFailure": ServiceUnavailable,
    "RequestTimeout": ServiceUnavailable,
    **dict.fromkeys(
        ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"),
        Throttled,
    ),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AccessDeniedException",
            "ExpiredToken",
            "ExpiredTokenException",
            "IncompleteSignature",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "MissingAuthenticationTokenException",
            "OptInRequired",
            "RequestExpired",
            "SignatureDoesNotMatch",
            "UnrecognizedClientException",
        ),
        CredentialsRefused,
    ),
}

_MEANING: dict[type[JobError], str] = {
    JobNameTaken: "a job of this name exists already",
    JobNotFound: "there is no job of this name in this account and region",
    CapacityUnavailable: "a quota of this account is used up; ask for more in Service Quotas, or wait",
    Throttled: "too many calls; it will be tried again",
    RequestRejected: "it will not succeed as it is; correct the study file",
    CredentialsRefused: "renew the credentials or grant the right, then resume; jobs go on running meanwhile",
    ServiceUnavailable: "whether it took effect is not known; it will be looked up and tried again",
}

# Botocore's own errors that mean "no usable credentials", by name: they differ from one version to the next.
_CREDENTIAL_ERRORS = frozenset(
    (
        "CredentialRetrievalError",
        "LoginError",
        "NoAuthTokenError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOError",
        "TokenRetrievalError",
    )
)


class TrainingClient(Protocol):
    """The part of a boto3 SageMaker client that is used here."""

    @property
    def create_training_job(self) -> Callable[..., Any]: ...

    @property
    def describe_training_job(self) -> Callable[..., Any]: ...

    @property
    def list_training_jobs(self) -> Callable[..., Any]: ...

    @property
    def stop_training_job(self) -> Callable[..., Any]: ...


class SageMakerJobs:
    """`JobService` on SageMaker. `calls` counts what went out, by operation."""

    def __init__(self, client: TrainingClient) -> None:
        self.calls: Counter[str] = Counter()
        self._client = client

    def create(self, request: JobRequest) -> str:
        secrets = tuple(request.environment.values())
        create = self._client.create_training_job
        reply = self._ask("CreateTrainingJob", create, request.name, secrets, **request_parameters(request))
        return str(_member(reply, "TrainingJobArn", request.name))

    def describe(self, name: str) -> Observation:
        describe = self._client.describe_training_job
        return observation(self._ask("DescribeTrainingJob", describe, name, TrainingJobName=name))

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime) -> tuple[JobSummary, ...]:
        """All pages at once, newest first: a job created while we page moves others back, where they are seen twice."""
        found: dict[str, JobSummary] = {}
        for page in self._pages(prefix, created_after - _CREATION_SLACK):
            for entry in _member(page, "TrainingJobSummaries", f"{prefix}*"):
                job = _summary(entry)
                if (
                    job.name.startswith(prefix)
                    and job.created_at >= created_after
                    and job.modified_at >= modified_after
                ):
                    found.setdefault(job.name, job)
        return tuple(found.values())

    def stop(self, name: str) -> None:
        try:
            self._ask("StopTrainingJob", self._client.stop_training_job, name, TrainingJobName=name)
        except RequestRejected as error:
            if "is in status" not in str(error):  # else it has ended, or is stopping: what we wanted
                raise

    def _pages(self, prefix: str, created_after: datetime) -> Iterator[_Reply]:
        query: dict[str, Any] = {
            "NameContains": prefix,
            "CreationTimeAfter": created_after,
            "SortBy": "CreationTime",
            "SortOrder": "Descending",
            "MaxResults": _PAGE,
        }
        seen: set[str] = set()
        while True:
            page = self._ask("ListTrainingJobs", self._client.list_training_jobs, f"{prefix}*", **query)
            yield page
            token = page.get("NextToken")
            if not token:
                return
            if token in seen:
                raise ServiceUnavailable(f"ListTrainingJobs of {prefix}*: the same page came twice; it is tried again")
            seen.add(token)
            query["NextToken"] = token

    def _ask(
        self,
        operation: str,
        call: Callable[..., Any],
        subject: str,
        secrets: tuple[str, ...] = (),
        **parameters: object,
    ) -> _Reply:
        """One call, counted; its errors are JobErrors about `subject`, a job's name or a prefix."""
        # Not at import: whoever holds a client has botocore loaded, whoever only reads a store need not have it.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - see the line above
        from botocore.parsers import ResponseParserError  # noqa: PLC0415 - as above

        self.calls[operation] += 1
        try:
            reply: _Reply = call(**parameters)
        except ClientError as error:
            kind, text = _refusal(operation, error.response)
        except (BotoCoreError, ResponseParserError, OSError) as error:
            kind, text = _transport_fault(error), f"{type(error).__name__}: {error}"
        else:
            return reply
        # Without the original: it holds the text that was just cleaned of secrets, and a traceback would print it.
        raise kind(f"{operation} of {subject}: {_redacted(text, secrets)} ({_MEANING[kind]})") from None


def request_parameters(request: JobRequest) -> dict[str, Any]:
    """What CreateTrainingJob is told. Empty lists are left out: the service wants one element or no member."""
    parameters: dict[str, Any] = {
        "TrainingJobName": request.name,
        "HyperParameters": dict(request.hyperparameters),
        "Environment": dict(request.environment),
        "AlgorithmSpecification": _algorithm(request),
        "RoleArn": request.role_arn,
        "OutputDataConfig": {"S3OutputPath": request.output_uri},
        "CheckpointConfig": {"S3Uri": request.checkpoint_uri, "LocalPath": CHECKPOINT_PATH},
        "ResourceConfig": {
            "InstanceType": request.instance_type,
            "InstanceCount": request.instance_count,
            "VolumeSizeInGB": request.volume_gb,
        },
        "StoppingCondition": _limits(request),
        "EnableManagedSpotTraining": request.spot,
        "Tags": [{"Key": key, "Value": value} for key, value in request.tags.items()],
    }
    if request.channels:
        parameters["InputDataConfig"] = [_channel(channel) for channel in request.channels]
    return parameters


def _algorithm(request: JobRequest) -> dict[str, Any]:
    algorithm: dict[str, Any] = {"TrainingImage": request.image_uri, "TrainingInputMode": "File"}
    if request.entrypoint:
        algorithm["ContainerEntrypoint"] = list(request.entrypoint)
    if request.metrics:
        algorithm["MetricDefinitions"] = [{"Name": metric.name, "Regex": metric.regex} for metric in request.metrics]
    return algorithm


def _limits(request: JobRequest) -> dict[str, int]:
    assert (request.max_wait_s is not None) == request.spot, "max_wait is for spot jobs, and they need it"
    limits = {"MaxRuntimeInSeconds": request.max_run_s}
    if request.max_wait_s is not None:
        limits["MaxWaitTimeInSeconds"] = request.max_wait_s
    return limits


def _channel(channel: Channel) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": channel.uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": channel.name, "DataSource": {"S3DataSource": source}, "InputMode": channel.mode}


def observation(reply: _Reply) -> Observation:
    """A DescribeTrainingJob answer as a record; ServiceUnavailable if it misses what every answer has."""
    name = str(_member(reply, "TrainingJobName", "a job"))
    created_at = _member(reply, "CreationTime", name)
    return Observation(
        name=name,
        arn=_member(reply, "TrainingJobArn", name),
        status=_status(reply, name),
        secondary=_member(reply, "SecondaryStatus", name),
        history=tuple(_history_row(row, name) for row in reply.get("SecondaryStatusTransitions", ())),
        created_at=_utc(created_at),
        modified_at=_utc(reply.get("LastModifiedTime", created_at)),
        digest=reply.get("Environment", {}).get(DIGEST_VARIABLE),
        failure=reply.get("FailureReason", ""),
        training_s=reply.get("TrainingTimeInSeconds"),
        billable_s=reply.get("BillableTimeInSeconds"),
        model_uri=reply.get("ModelArtifacts", {}).get("S3ModelArtifacts"),
    )


def _history_row(row: _Reply, name: str) -> HistoryRow:
    ended_at = row.get("EndTime")
    return HistoryRow(
        status=_member(row, "Status", name),
        started_at=_utc(_member(row, "StartTime", name)),
        ended_at=None if ended_at is None else _utc(ended_at),
        message=row.get("StatusMessage", ""),
    )


def _summary(entry: _Reply) -> JobSummary:
    name = str(_member(entry, "TrainingJobName", "a listed job"))
    return JobSummary(
        name=name,
        arn=_member(entry, "TrainingJobArn", name),
        status=_status(entry, name),
        secondary=entry.get("SecondaryStatus", ""),
        created_at=_utc(_member(entry, "CreationTime", name)),
        modified_at=_utc(_member(entry, "LastModifiedTime", name)),
    )


def _status(reply: _Reply, name: str) -> JobStatus:
    value = _member(reply, "TrainingJobStatus", name)
    try:
        return JobStatus(value)
    except ValueError:
        raise ServiceUnavailable(f"{name}: SageMaker gives it the status {value!r}, which we do not know") from None


def _member(reply: _Reply, key: str, subject: str) -> Any:  # noqa: ANN401 - JSON: its type depends on the key
    """A member that every answer has."""
    value = reply.get(key)
    if value is None:
        raise ServiceUnavailable(f"{subject}: the answer has no {key}, so it is not SageMaker's; it is asked again")
    return value


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)  # botocore gives the local zone


def _refusal(operation: str, response: _Reply) -> tuple[type[JobError], str]:
    """The decision that an error answer calls for, and its text."""
    error = response.get("Error", {})
    code, message = str(error.get("Code", "")), str(error.get("Message", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    kind = _special_case(operation, code, message) or _BY_CODE.get(code) or _by_http_status(status)
    return kind, f"{code}: {message}"


def _special_case(operation: str, code: str, message: str) -> type[JobError] | None:
    """Where the code alone says too little."""
    text = message.lower()
    if code == "ResourceNotFound" or (code == "ValidationException" and "not found" in text):
        # On create it is an image or a data set that is missing. Stop and Describe say it by ValidationException.
        return RequestRejected if operation == "CreateTrainingJob" else JobNotFound
    if code == "ValidationException" and "assume" in text and "role" in text:
        # So it is said of a role that was made moments ago, too: a wait or the user helps, another trial does not.
        return CredentialsRefused
    return None


def _by_http_status(status: int) -> type[JobError]:
    """For codes that we have never seen."""
    if status >= 500:  # noqa: PLR2004 - HTTP's own number
        return ServiceUnavailable
    return {401: CredentialsRefused, 403: CredentialsRefused, 429: Throttled}.get(status, RequestRejected)


def _transport_fault(error: Exception) -> type[JobError]:
    """The decision for an error that no answer came with."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & _CREDENTIAL_ERRORS:
        return CredentialsRefused
    # The SDK's own check of types and minima, made before anything is sent.
    return RequestRejected if "ParamValidationError" in names else ServiceUnavailable


def _redacted(text: str, secrets: tuple[str, ...]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SECRET_LENGTH:
            text = text.replace(secret, "***")
    return text
