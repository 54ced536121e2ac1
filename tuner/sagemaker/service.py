"""The job service on a boto3 SageMaker client: calls, paging, history and billing.

It exists so that nothing else knows how SageMaker answers. The client is given: it may be AWS's or the local
service's, and this module cannot tell which.

Rules:
- Every error is translated, once, into a class of `tuner.core.jobs`; the message says what it
  means and keeps SageMaker's own text, without values of the job's environment: SageMaker echoes them, secrets too.
- What SageMaker would refuse is refused before it is sent, everything at once.
- Secrets are looked up as a request is sent, by a function that is given, and kept by nobody.
- An answer that misses what it must have is an answer that did not arrive: a proxy's page with status 200 parses to
  nothing. Statuses of the history that we do not know are passed on: SageMaker says that they may come.
- Lists are bounded by creation time. Filtering by modification time in the service walks every page of the account
  until it is throttled, so that filter is applied here; so is the prefix, since `NameContains` also finds it inside.
- No retries: the caller has a clock, this module has none. Give it a client with `total_max_attempts=1`, else the SDK
  sleeps in real time and a create whose response was lost finds its own name taken.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeAlias

from tuner.core.jobs import (
    DIGEST_VARIABLE,
    HistoryRow,
    JobRequest,
    JobStatus,
    JobSummary,
    Observation,
    RequestRejected,
    SecretMissing,
    ServiceUnavailable,
)
from tuner.sagemaker.errors import job_error, rejected
from tuner.sagemaker.request import request_of, request_parameters
from tuner.sagemaker.rules import violations

_PAGE = 100  # the most that a list gives; its default of 10 makes ten times the calls, of which an account has 2/s
_CREATION_SLACK = timedelta(seconds=1)  # "created after" is exclusive, and how finely it compares is not documented
_SECRET_LENGTH = 6  # shorter values of the plain environment are numbers and switches, and stand in every other text

_Reply: TypeAlias = Mapping[str, Any]


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

    def __init__(
        self,
        client: TrainingClient,
        *,
        secret: Callable[[str], str] | None = None,
        next_page: Callable[[], None] = lambda: None,
    ) -> None:
        """`secret` gives the value of a variable of the submitting process, or raises SecretMissing.

        `next_page` is called before each page of a list but the first, and may refuse it by a JobError.
        """
        self.calls: Counter[str] = Counter()
        self._next_page = next_page
        self._client = client
        self._secret = secret or secret_of_environment

    def create(self, request: JobRequest) -> str:
        secrets = {name: self._secret(variable) for name, variable in request.secrets.items()}
        parameters = request_parameters(request, secrets)
        plain = (value for value in request.environment.values() if len(value) >= _SECRET_LENGTH)
        values = (*secrets.values(), *plain)
        if faults := violations(parameters):
            raise rejected("CreateTrainingJob", request.name, faults, values)
        reply = self._ask("CreateTrainingJob", self._client.create_training_job, request.name, values, **parameters)
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
            self._next_page()

    def _ask(
        self,
        operation: str,
        call: Callable[..., Any],
        subject: str,
        secrets: tuple[str, ...] = (),
        **parameters: object,
    ) -> _Reply:
        """One call, counted; its errors are JobErrors about `subject`, a job's name or a prefix."""
        # Not at import: a process with a client has botocore loaded; a process that only reads a store may lack it.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - see the line above
        from botocore.parsers import ResponseParserError  # noqa: PLC0415 - as above

        self.calls[operation] += 1
        try:
            reply: _Reply = call(**parameters)
        except (ClientError, BotoCoreError, ResponseParserError, OSError) as error:
            problem = job_error(operation, subject, error, secrets)
        else:
            return reply
        # Without the original: it holds the text that was just cleaned of secrets, and a traceback would print it.
        raise problem from None


def secret_of_environment(variable: str) -> str:
    """The value of a variable of this process. Raises SecretMissing, which never holds a value."""
    value = os.environ.get(variable)
    if not value:
        raise SecretMissing(
            f"training.secrets: the variable {variable} is not set where the tuner runs, so nothing can be submitted; "
            f"set it there (export {variable}=…) and resume; jobs go on running meanwhile"
        )
    return value


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
        final_metrics={
            each["MetricName"]: float(each["Value"])
            for each in reply.get("FinalMetricDataList", ())
            if "MetricName" in each and "Value" in each
        },
        asked=request_of(reply),
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
    created_at = _member(entry, "CreationTime", name)
    return JobSummary(
        name=name,
        arn=_member(entry, "TrainingJobArn", name),
        status=_status(entry, name),
        secondary=entry.get("SecondaryStatus", ""),
        created_at=_utc(created_at),
        # the service model does not promise it; without, the job is described when it has not been for long
        modified_at=_utc(entry.get("LastModifiedTime") or created_at),
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
