"""The port to any service that runs training jobs: its contract, its errors, and the rule that derives job names.

Contract of `JobService`, kept by every implementation and proved by one conformance class:

- `create` with a name that was ever used raises `JobNameTaken`; after it returned, `describe` finds the job.
- `describe` carries the whole status history, oldest first; of a row that was shown only the end and message change.
- An interruption appears in the history and does not end the job.
- `stop` may be repeated, and on a job that has ended it does nothing; an unknown job is `JobNotFound`.
- `list_changed` may lag behind `describe` and may repeat itself; it never invents.
- Final figures (`training_s`, `billable_s`) are there once the status is final, and None for a job that never started.

There is one class of operating error for each decision that we would take. Any other exception is a bug and crashes
the engine, whose restart is the tested recovery path.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tuner.core.records import AttemptEnd, Json

# Environment variable of every job of ours that proves that it is ours (Describe returns no tags).
DIGEST_VARIABLE = "TUNER_DIGEST"


class JobError(Exception):
    """An answer of the job service that calls for a decision."""


class JobNameTaken(JobError):  # noqa: N818 - these are answers, not errors of ours
    """A job of this name exists: ours, if its digest is equal, else foreign."""


class JobNotFound(JobError):  # noqa: N818
    """No job of this name."""


class CapacityUnavailable(JobError):  # noqa: N818
    """A quota of ours is used up: the same submission may succeed later.

    `limit` and `used`, in instances, are what the text said of a quota for one instance type, and a hint only: a limit
    of 0 will not change by waiting.
    """

    def __init__(self, message: str, *, limit: int | None = None, used: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.used = used


class Throttled(JobError):  # noqa: N818
    """Too many calls: the same call may succeed later."""


class RequestRejected(JobError):  # noqa: N818
    """The request can never succeed as it is."""


class CredentialsRefused(JobError):  # noqa: N818
    """Nothing can be done before the user renews credentials or rights; jobs go on meanwhile."""


class RoleNotReady(JobError):  # noqa: N818
    """The role cannot be assumed. A role that was just made gives the same error, so a few more tries are worth it."""


class SecretMissing(JobError):  # noqa: N818
    """A secret that the job needs is not in this process's environment: nothing was sent."""


class ServiceUnavailable(JobError):  # noqa: N818
    """The outcome of the call is unknown: it may have taken effect."""


class JobStatus(StrEnum):
    IN_PROGRESS = "InProgress"
    STOPPING = "Stopping"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"
    DELETING = "Deleting"

    @property
    def final(self) -> bool:
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    name: str
    uri: str
    mode: str = "File"
    data_type: str = "S3Prefix"
    distribution: str = "FullyReplicated"
    content_type: str = ""  # empty, as those below: not given
    compression: str = ""
    record_wrapper: str = ""
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    name: str
    regex: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Everything that CreateTrainingJob needs. Strings are data: none of them is ever given to a shell.

    `secrets` maps variables of the job to variables of the submitting process. Their values are looked up when the
    request is sent, and no record holds them. `raw` holds members of CreateTrainingJob that have no field here.
    """

    name: str
    hyperparameters: Mapping[str, str]
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]  # empty: the image's own
    image_uri: str  # empty exactly if `algorithm` is not
    channels: tuple[Channel, ...]
    checkpoint_uri: str
    output_uri: str
    instance_type: str
    instance_count: int
    volume_gb: int
    spot: bool
    max_run_s: int
    max_wait_s: int | None  # None exactly if spot is False
    role_arn: str
    tags: Mapping[str, str]
    metrics: tuple[MetricDefinition, ...] = ()
    algorithm: str = ""  # name or ARN of an algorithm resource, which has an image and an entrypoint of its own
    checkpoint_path: str = "/opt/ml/checkpoints"
    secrets: Mapping[str, str] = field(default_factory=dict)
    security_groups: tuple[str, ...] = ()  # with `subnets`, or without both
    subnets: tuple[str, ...] = ()
    kms_key: str = ""  # of the volume and of the outputs; empty: the services' own keys
    network_isolation: bool = False
    raw: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """One row of SecondaryStatusTransitions. Statuses are the service's own words; unknown ones may appear."""

    status: str
    started_at: datetime
    ended_at: datetime | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the service reports of one job now."""

    name: str
    arn: str
    status: JobStatus
    secondary: str
    history: tuple[HistoryRow, ...]
    created_at: datetime
    modified_at: datetime
    digest: str | None = None
    failure: str = ""
    training_s: int | None = None
    billable_s: int | None = None
    model_uri: str | None = None
    final_metrics: Mapping[str, float] = field(default_factory=dict)  # the last value of each, by the service's regexes
    asked: JobRequest | None = None  # the request as the service reports it; None if it does not


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    name: str
    arn: str
    status: JobStatus
    secondary: str
    created_at: datetime
    modified_at: datetime


class JobService(Protocol):
    """Runs training jobs. See the module's contract."""

    def create(self, request: JobRequest) -> str:
        """Start a job; returns its ARN. Raises any JobError but JobNotFound."""
        ...

    def describe(self, name: str) -> Observation:
        """What is known of a job. Raises JobNotFound, Throttled, CredentialsRefused, ServiceUnavailable."""
        ...

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime) -> Iterable[JobSummary]:
        """Jobs whose name starts with `prefix`, created and modified at or after these moments, each once."""
        ...

    def stop(self, name: str) -> None:
        """Ask a job to stop. Raises JobNotFound, Throttled, CredentialsRefused, ServiceUnavailable."""
        ...


def job_name(study_key: str, trial: int, attempt: int) -> str:
    """The name of an attempt's job. It is derived, not drawn, so that after a crash the attempt finds its own job."""
    return f"{study_key}-{trial:05d}-{attempt:03d}"


_NUMBERS = re.compile(r"-([0-9]{5,})-([0-9]{3,})")


def trial_and_attempt(name: str, study_key: str) -> tuple[int, int] | None:
    """The trial and the attempt of this study to which a job name belongs; None for every other name.

    The beginning alone proves nothing: the key of one study may be the name of another, whose jobs begin with it, too.
    """
    match = _NUMBERS.fullmatch(name.removeprefix(study_key)) if name.startswith(study_key) else None
    if match is None:
        return None
    trial, attempt = int(match[1]), int(match[2])
    return (trial, attempt) if job_name(study_key, trial, attempt) == name else None


def digest(hyperparameters: Mapping[str, str], checkpoint_uri: str, code_uri: str) -> str:
    """What proves, in addition to its name, that a job is ours: equal values, checkpoints and code (SHA-256, hex)."""
    text = json.dumps([sorted(hyperparameters.items()), checkpoint_uri, code_uri], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --- the request against the job


def differences(request: JobRequest, seen: JobRequest) -> tuple[str, ...]:
    """The differences between a job and its request, a line each. An SDK once dropped the spot flag silently.

    Only what decides about money, resume and safety is compared, with the freedom that services take: names may come
    back as ARNs, addresses without the last slash, and defaults in addition to our hyperparameters.
    """
    return tuple(
        f"{name}: asked for {wanted!r}, the job has {found!r}"
        for name, wanted, found in _compared(request, seen)
        if wanted != found
    )


_EXACT = (
    "spot", "instance_type", "instance_count", "max_run_s", "max_wait_s", "role_arn", "network_isolation",
)  # fmt: skip
_ADDRESSES = ("checkpoint_uri", "checkpoint_path", "output_uri")
_SETS = ("security_groups", "subnets")


def _compared(request: JobRequest, seen: JobRequest) -> Iterator[tuple[str, object, object]]:
    """What is compared: name, requested value, value of the job."""
    for name in _EXACT:
        yield name, getattr(request, name), getattr(seen, name)
    for name in _ADDRESSES:
        yield name, getattr(request, name).rstrip("/"), getattr(seen, name).rstrip("/")
    for name in _SETS:
        yield name, sorted(getattr(request, name)), sorted(getattr(seen, name))
    if request.entrypoint:  # else the image or `raw` decides
        yield "entrypoint", request.entrypoint, seen.entrypoint
    yield "encryption by a key of ours", bool(request.kms_key), bool(seen.kms_key)
    if seen.kms_key and "alias/" not in request.kms_key:
        yield "kms_key", _last(request.kms_key), _last(seen.kms_key)
    if seen.volume_gb:  # instances with disks of their own have none
        yield "volume_gb", request.volume_gb, seen.volume_gb
    there = {channel.name: channel.uri.rstrip("/") for channel in seen.channels}
    for channel in request.channels:
        yield f"channel {channel.name}", channel.uri.rstrip("/"), there.get(channel.name)
    yield from _shown(request.raw, seen.raw)
    if request.algorithm:
        yield "algorithm", _last(request.algorithm), _last(seen.algorithm)
    else:
        yield "image_uri", request.image_uri, seen.image_uri
    for key, value in request.hyperparameters.items():
        yield f"hyperparameter {key}", value, seen.hyperparameters.get(key)


def _shown(
    wanted: Mapping[str, Json], found: Mapping[str, Json], path: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Plain values that both name: a service may leave some out, and add defaults."""
    for name, value in wanted.items():
        if name not in found:
            continue
        other = found[name]
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from _shown(value, other, f"{path}{name}.")
        elif not isinstance(value, Mapping | list):
            yield f"{path}{name}", value, other


def _last(arn: str) -> str:
    """The name at the end of an ARN, or the name itself."""
    return arn.rpartition("/")[2]


# --- why a job failed


# FailureReason starts with one of these words (aws: documented for Pipelines' retry policies and seen in the field).
_FAILURES = {
    "CapacityError": AttemptEnd.CAPACITY,
    "InternalServerError": AttemptEnd.SERVICE_FAULT,
    "AlgorithmError": AttemptEnd.SCRIPT_ERROR,
    "ClientError": AttemptEnd.SCRIPT_ERROR,
}


# The reason of a trial that ran out of memory begins with this.
OUT_OF_MEMORY = "out_of_memory"
# Words of SageMaker, of its toolkits (for exit code 137), of Python, PyTorch, CUDA, C++ and Java.
_MEMORY = re.compile(
    r"instance type with more memory|OutOfMemory|\bMemoryError\b|out of memory|std::bad_alloc|cannot allocate memory",
    re.IGNORECASE,
)


def out_of_memory_at(reason: str) -> int:
    """Where a failure last says that the job ran out of memory, as it would again on this instance type; else -1."""
    return max((found.start() for found in _MEMORY.finditer(reason)), default=-1)


def classify_failure(reason: str) -> AttemptEnd:
    """How a failed job ended. Unknown words count as faults of the service: these are retried a few times."""
    return _FAILURES.get(reason.split(":", 1)[0].strip(), AttemptEnd.SERVICE_FAULT)
