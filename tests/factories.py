"""The one home for records that tests make up: each function gives a legal record, and a test changes what matters.

    factories.trial(3, state=TrialState.SUCCEEDED, values=(0.9,))

Rules: one function a record. Defaults are plain and belong together: the study `digits`, its trial 0, the attempt 1 of
that trial, and the job of that attempt. A folder of tests that wants other defaults calls these functions with them.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from tuner.core.events import EventKind
from tuner.core.jobs import HistoryRow, JobRequest, JobStatus, JobSummary, Observation
from tuner.core.policy.settings import Policy
from tuner.core.records import (
    Attempt,
    AttemptState,
    Event,
    Holder,
    Intent,
    MetricPoint,
    Point,
    Run,
    RunRecord,
    Study,
    StudyState,
    Trial,
    TrialState,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BUNDLE = "s3://bucket/bundles/b/"
INSTANCE_TYPE = "ml.g5.xlarge"


def at(seconds: float) -> datetime:
    """So long after `NOW`."""
    return NOW + timedelta(seconds=seconds)


# --- rows of the store


def study(name: str = "digits", **changes: Any) -> Study:
    moment = changes.get("created_at", NOW)
    given: dict[str, Any] = {
        "id": 0,
        "name": name,
        "key": f"k-{name}",
        "owner": "ann",
        "state": StudyState.RUNNING,
        "version": 0,
        "spec": "{}",
        "backend": "local",
        "bundle_uri": BUNDLE,
        "local_dir": None,
        "intent": Intent.RUN,
        "intent_at": moment,
        "created_at": moment,
    }
    return Study(**given | changes)


def trial(number: int = 0, **changes: Any) -> Trial:
    given: dict[str, Any] = {
        "number": number,
        "state": TrialState.RUNNING,
        "version": 0,
        "params": {},
        "distributions": "{}",
        "attrs": {},
        "prefix": f"s3://bucket/digits/{number:05d}/",
        "bundle_uri": BUNDLE,
        "asked_seq": 1,
        "created_at": NOW,
    }
    return Trial(**given | changes)


def attempt(trial: int = 0, number: int = 1, *, key: str = "k-digits", **changes: Any) -> Attempt:
    """`key` is the study's: the job's name begins with it. On demand there is no `max_wait_s`."""
    given: dict[str, Any] = {
        "trial": trial,
        "number": number,
        "state": AttemptState.TRAINING,
        "version": 0,
        "job_name": f"{key}-{trial:05d}-{number:03d}",
        "digest": "d" * 64,
        "instance_type": INSTANCE_TYPE,
        "instance_count": 1,
        "spot": True,
        "rate_microusd_per_h": 1_408_000,
        "max_run_s": 3600,
        "max_wait_s": 7200 if changes.get("spot", True) else None,
        "reserved_microusd": 2_000_000,
        "created_at": NOW,
    }
    return Attempt(**given | changes)


def run(trial: int = 0, attempt: int = 1, number: int = 1, **changes: Any) -> Run:
    given: dict[str, Any] = {"trial": trial, "attempt": attempt, "number": number, "started_at": NOW}
    return Run(**given | changes)


def point(trial: int = 0, step: int = 1, value: float = 0.5, **changes: Any) -> Point:
    given: dict[str, Any] = {"name": "accuracy", "attempt": 1, "run_id": "r1", "at": NOW}
    return Point(trial=trial, step=step, value=value, **given | changes)


def event(seq: int = 1, kind: EventKind | str = "note", **changes: Any) -> Event:
    given: dict[str, Any] = {"recorded_at": NOW, "happened_at": NOW}
    return Event(seq=seq, kind=kind, **given | changes)


def holder(number: int = 1, **changes: Any) -> Holder:
    """A process that may hold a lease."""
    given: dict[str, Any] = {"host": "here", "boot_id": "boot", "pid": number, "started": str(number)}
    return Holder(**given | changes)


# --- what lies under a prefix


def metric_point(step: int | None = 1, value: float = 0.5, **changes: Any) -> MetricPoint:
    given: dict[str, Any] = {"attempt": 1, "run": "r1", "host": "algo-1", "at": NOW, "name": "accuracy"}
    return MetricPoint(step=step, value=value, **given | changes)


def run_record(run: str = "r1", **changes: Any) -> RunRecord:
    """A run that found nothing to resume from."""
    given: dict[str, Any] = {
        "attempt": 1,
        "run": run,
        "host": "algo-1",
        "started_at": NOW,
        "resume_step": None,
        "resume_saved_at": None,
        "own_files": 0,
    }
    return RunRecord(**given | changes)


# --- jobs


def job_request(name: str = "k-digits-00000-001", **changes: Any) -> JobRequest:
    """The least that a job needs. On demand there is no `max_wait_s`."""
    given: dict[str, Any] = {
        "name": name,
        "hyperparameters": {},
        "environment": {},
        "entrypoint": (),
        "image_uri": "image",
        "channels": (),
        "checkpoint_uri": f"s3://bucket/{name}/",
        "output_uri": "s3://bucket/outputs/",
        "instance_type": "ml.m5.large",
        "instance_count": 1,
        "volume_gb": 1,
        "spot": True,
        "max_run_s": 3600,
        "max_wait_s": 7200 if changes.get("spot", True) else None,
        "role_arn": "arn:aws:iam::123456789012:role/jobs",
        "tags": {},
    }
    return JobRequest(**given | changes)


def history(*rows: tuple[str, float], ends: float | None = None) -> tuple[HistoryRow, ...]:
    """Rows of status and start in seconds; each ends where the next begins, the last one at `ends`."""
    stops = [started for _, started in rows[1:]]
    return tuple(
        HistoryRow(status=status, started_at=at(started), ended_at=None if stop is None else at(stop))
        for (status, started), stop in zip(rows, [*stops, ends], strict=True)
    )


def observation(name: str = "k-digits-00000-001", **changes: Any) -> Observation:
    """A job that trains, or what its `history` shows last."""
    rows = changes.get("history", ())
    given: dict[str, Any] = {
        "name": name,
        "arn": f"arn:{name}",
        "status": JobStatus.IN_PROGRESS,
        "secondary": rows[-1].status if rows else "Training",
        "history": rows,
        "created_at": NOW,
        "modified_at": rows[-1].started_at if rows else NOW,
    }
    return Observation(**given | changes)


def job_summary(name: str = "k-digits-00000-001", **changes: Any) -> JobSummary:
    moment = changes.get("modified_at", NOW)
    given: dict[str, Any] = {
        "name": name,
        "arn": f"arn:{name}",
        "status": JobStatus.IN_PROGRESS,
        "secondary": "Training",
        "created_at": moment,
        "modified_at": moment,
    }
    return JobSummary(**given | changes)


# --- what decisions are made by


def policy(**changes: Any) -> Policy:
    """Two instance types on spot, the second at twice the rate of the first."""
    types = changes.get("instance_types", ("ml.a.large", "ml.b.large"))
    given: dict[str, Any] = {
        "trials": 10,
        "parallel": 2,
        "max_run_s": 3600,
        "max_wait_s": 7200,
        "max_faults": 2,
        "poll_s": 30.0,
        "stop_within_s": 300.0,
        "stop_grace_s": 120.0,
        "upload_allowance_s": 300.0,
        "spot": True,
        "instance_types": types,
        "instance_count": 1,
        "rates_microusd_per_h": tuple(1_000_000 * (1 + number) for number in range(len(types))),
    }
    return Policy(**given | changes)
