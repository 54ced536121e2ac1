"""Time and money of a job, computed from its transitions and from nothing else.

Rules: an instance is up, and counted, from Downloading or Training to the end of that run, upload included; waiting
for capacity and starting are not. Stopping counts if an instance was up when it began. The saving of spot is inside
the billable seconds. Standard library only (the supervisor reads it).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from tuner.local.jobdir import Row, open_job

_UP = frozenset({"Downloading", "Training", "Uploading"})


@dataclass(frozen=True, slots=True)
class Bill:
    """What a job costs so far or did cost. Seconds are whole, and None if no instance ever started."""

    training_s: int | None
    billable_s: int | None
    instance_count: int
    instance_type: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The stopping condition of a job, and how its MaxRuntime is read."""

    max_run_s: float
    max_wait_s: float | None
    each_run: bool


def up_segments(rows: Sequence[Row], until: float) -> list[tuple[float, float]]:
    """From when to when an instance was up, one segment a run, epoch seconds."""
    segments: list[tuple[float, float]] = []
    is_up = False
    for row, following in pairwise(chain(rows, [Row("", until)])):
        was_up = is_up
        is_up = row.status in _UP or (was_up and row.status == "Stopping")
        if is_up:
            start = segments.pop()[0] if was_up else row.at
            segments.append((start, following.at))
    return segments


def training_seconds(rows: Sequence[Row]) -> int | None:
    """TrainingTimeInSeconds of a job that ends with the last of these rows; AWS knows no 0 here."""
    segments = up_segments(rows, rows[-1].at)
    return max(1, round(_total(segments))) if segments else None


def elapsed_seconds(rows: Sequence[Row]) -> int | None:
    """The same read the other way: from the first run's beginning to the last one's end."""
    segments = up_segments(rows, rows[-1].at)
    return max(1, round(segments[-1][1] - segments[0][0])) if segments else None


def shown_seconds(rows: Sequence[Row], record: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """TrainingTimeInSeconds and BillableTimeInSeconds, as the job's settings read them."""
    up_s = training_seconds(rows)
    is_elapsed = record["settings"].get("training_time") == "elapsed"
    return elapsed_seconds(rows) if is_elapsed else up_s, billable_seconds(up_s, record["saving"])


def billable_seconds(training_s: int | None, saving: float) -> int | None:
    """BillableTimeInSeconds of that training time."""
    return None if training_s is None else max(1, round(training_s * (1.0 - saving)))


def limit_at(rows: Sequence[Row], limits: Limits) -> tuple[float, str]:
    """When the job reaches a limit if nothing changes, and which: `max_run` or `max_wait`."""
    segments = up_segments(rows, rows[-1].at)
    moments = [] if limits.max_wait_s is None else [(rows[0].at + limits.max_wait_s, "max_wait")]
    if rows[-1].status in _UP:
        counted = segments[-1:] if limits.each_run else segments
        moments.append((rows[-1].at + limits.max_run_s - _total(counted), "max_run"))
    return min(moments, default=(float("inf"), "max_run"))


def limits_of(request: Mapping[str, Any], reading: str) -> Limits:
    condition = request.get("StoppingCondition", {})
    wait_s = condition.get("MaxWaitTimeInSeconds")
    return Limits(condition.get("MaxRuntimeInSeconds", 86_400), wait_s, reading == "each_run")


def bill(state_dir: Path, job_name: str) -> Bill:
    """Recompute a job's bill from its durable transitions, whatever Describe says. Raises KeyError for no such job."""
    job = open_job(state_dir, job_name)
    if job is None:
        raise KeyError(job_name)
    training_s, billable_s = shown_seconds(job.rows(), job.record)
    resources = job.request["ResourceConfig"]
    return Bill(
        training_s=training_s,
        billable_s=billable_s,
        instance_count=resources["InstanceCount"],
        instance_type=resources["InstanceType"],
    )


def _total(segments: Iterable[tuple[float, float]]) -> float:
    return sum(end - start for start, end in segments)
