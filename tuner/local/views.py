"""What the API shows of a job, made from its directory.

Rules: times and seconds that AWS gives only at the end are absent before; tags are never in a Describe; a description
is the request's own members plus what became of it.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tuner.local.billing import shown_seconds, up_segments
from tuner.local.jobdir import ENDS, JobDir, Row

_STATUS = {"MaxRuntimeExceeded": "Stopped", "MaxWaitTimeExceeded": "Stopped"}
_NOT_SHOWN = frozenset({"Tags", "SessionChainingConfig"})


def job_status(row: Row) -> str:
    """TrainingJobStatus for a secondary status."""
    if row.status in ENDS or row.status == "Stopping":
        return _STATUS.get(row.status, row.status)
    return "InProgress"


def summary(job: JobDir, rows: Sequence[Row]) -> dict[str, Any]:
    """A member of TrainingJobSummaries."""
    last = rows[-1]
    shown: dict[str, Any] = {
        "TrainingJobName": job.name,
        "TrainingJobArn": job.record["arn"],
        "CreationTime": job.record["created_at"],
        "LastModifiedTime": last.at,
        "TrainingJobStatus": job_status(last),
        "SecondaryStatus": last.status,
    }
    if last.status in ENDS and up_segments(rows, last.at):
        shown["TrainingEndTime"] = last.at
    return shown


def description(job: JobDir, rows: Sequence[Row], now: float | None = None) -> dict[str, Any]:
    """The answer of DescribeTrainingJob; with `now`, the seconds of a running job where its settings show them."""
    last = rows[-1]
    shown = {key: value for key, value in job.request.items() if key not in _NOT_SHOWN}
    shown.setdefault("EnableManagedSpotTraining", False)
    shown.setdefault("EnableNetworkIsolation", False)
    shown.setdefault("EnableInterContainerTrafficEncryption", False)
    shown |= summary(job, rows)
    shown["SecondaryStatusTransitions"] = [
        _transition(row, following) for row, following in zip_longest(rows, rows[1:])
    ]
    if segments := up_segments(rows, last.at):
        shown["TrainingStartTime"] = segments[0][0]
    if now is not None and last.status not in ENDS and job.record["settings"].get("billable_mid_run"):
        training_s, billable_s = shown_seconds([*rows, Row("", max(now, last.at))], job.record)
        return shown | _ending({"training_s": training_s, "billable_s": billable_s}, now)
    return shown | _ending(last.facts, last.at)


def _transition(row: Row, following: Row | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"Status": row.status, "StartTime": row.at, "StatusMessage": row.message}
    if following is not None:
        shown["EndTime"] = following.at
    elif row.status in ENDS:
        shown["EndTime"] = row.at
    return shown


def _ending(facts: Mapping[str, Any], at: float) -> dict[str, Any]:
    shown = {
        "TrainingTimeInSeconds": facts.get("training_s"),
        "BillableTimeInSeconds": facts.get("billable_s"),
        "FailureReason": facts.get("reason"),
        "ModelArtifacts": {"S3ModelArtifacts": facts["artifacts"]} if facts.get("artifacts") else None,
    }
    if metrics := facts.get("metrics"):
        shown["FinalMetricDataList"] = [
            {"MetricName": name, "Value": value, "Timestamp": at} for name, value in metrics.items()
        ]
    return {key: value for key, value in shown.items() if value is not None}
