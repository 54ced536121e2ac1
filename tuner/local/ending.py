"""How a job ends, and what the death of its instance means.

Used by the supervisor, which ends its own job, and by the service, which finds the jobs whose supervisor is gone.

Rules: standard library only. The times that are billed are entered together with the end, as AWS freezes them; `bill`
recomputes them from the other rows.
"""

from collections.abc import Collection, Mapping
from typing import Any

from tuner.local.billing import shown_seconds
from tuner.local.jobdir import JobDir, Row

INTERNAL_ERROR = "InternalServerError: We encountered an internal error. Please try again."
UP = frozenset({"Downloading", "Training", "Uploading"})
_GOING = frozenset({"Starting", "Interrupted", *UP})
_STOPPED_BY = {"user": "Stopped", "max_run": "MaxRuntimeExceeded", "max_wait": "MaxWaitTimeExceeded"}


def begin_stop(job: JobDir, at: float, message: str, *, cause: str) -> bool:
    """Enter Stopping. False if the job has ended, or is stopping: of a user and a limit at once, one was first."""
    return job.append("Stopping", at, message, after=_GOING, facts={"cause": cause})


def end_job(
    job: JobDir,
    status: str,
    at: float,
    *,
    after: Collection[str] | None = None,
    artifacts: str | None = None,
    reason: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> bool:
    """Enter an end. False if the job is not in `after`, or has ended."""
    rows = job.rows()
    at = max(at, rows[-1].at)
    training_s, billable_s = shown_seconds([*rows, Row(status, at)], job.record)
    facts: dict[str, Any] = {
        "training_s": training_s,
        "billable_s": billable_s,
        "artifacts": artifacts,
        "reason": reason,
    }
    if metrics:
        facts["metrics"] = dict(metrics)
    message = (
        reason
        or f"Training job {'failed' if status == 'Failed' else 'completed' if status == 'Completed' else 'stopped'}"
    )
    return job.append(status, at, message, after=after, facts=facts)


def end_stopped(
    job: JobDir, at: float, artifacts: str | None = None, metrics: Mapping[str, float] | None = None
) -> bool:
    """Enter the end that a job in Stopping is stopping for."""
    cause = job.rows()[-1].facts["cause"]
    return end_job(job, _STOPPED_BY[cause], at, after=["Stopping"], artifacts=artifacts, metrics=metrics)


def interrupt(job: JobDir, at: float) -> bool:
    """Record that the instance was taken. False if the job was not on one."""
    return job.append("Interrupted", at, "Training job interrupted", after=UP)


def bury(job: JobDir) -> None:
    """Record the death of an instance at its last sign of life: an interruption of spot, else the end of the job."""
    last = job.rows()[-1]
    died_at = max(job.last_life(), last.at)
    if last.status == "Stopping":
        end_stopped(job, died_at)
    elif last.status in UP and job.is_spot:
        interrupt(job, died_at)
    elif last.status in UP:
        end_job(job, "Failed", died_at, after=UP, reason=INTERNAL_ERROR)
