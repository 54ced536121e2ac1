"""SageMaker's training operations on a state directory.

There is no daemon: the calling process does the work, and each call leaves the directory complete. A call that looks
at a job first checks that the job has a supervisor. A job without one is an instance that died: the call ends what is
left of its processes, records the interruption at its last sign of life, and starts a new supervisor.

Rules: error codes and texts are SageMaker's; the service does not know who calls, and imports nothing of ours that
does. Finished jobs are parsed once per process and recognised by their history's time and size afterwards, so a list
over a thousand of them costs a thousand `stat`s.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.core.clock import Clock, SystemClock
from tuner.local import views
from tuner.local.container import host_environment
from tuner.local.ending import begin_stop, bury
from tuner.local.faults import AnswerLost, ForcedErrors
from tuner.local.jobdir import ENDS, JobDir, Row, create_job, job_names, new_temporary, open_job
from tuner.local.listing import list_page, turn_page
from tuner.local.processes import end_all_of, start_supervisor
from tuner.local.search import matches
from tuner.local.settings import LocalSettings, read_settings
from tuner.local.validate import Refused, check_create, check_shape, invalid
from tuner.storage.objects import STATE_MARK

ACCOUNT = "000000000000"
STUDY_TAG = "tuner:study"
_UNKNOWN = "Requested resource not found."
_STALE_S = 3600.0

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _JobSeen:
    """A job as last read, and by which stamp it is recognised as unchanged."""

    stamp: tuple[int, int, int]
    job: JobDir
    rows: Sequence[Row]
    summary: Params


class LocalSageMaker:
    """The service over one state directory; any number of them, in any processes, may share it."""

    def __init__(
        self,
        state_dir: Path,
        *,
        region: str = "us-east-1",
        clock: Clock | None = None,
        s3_endpoint: str | None = None,
    ) -> None:
        self.state_dir = state_dir.absolute()
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # one that can only be read is looked at all the same
            (self.state_dir / STATE_MARK).touch()
        self.region = region
        self._clock = clock or SystemClock()
        self._s3_endpoint = s3_endpoint
        self._faults = ForcedErrors()
        self._seen: dict[str, _JobSeen] = {}
        self._children: set[int] = set()
        self._operations: dict[str, Callable[[Params], Params]] = {
            "CreateTrainingJob": self.create_training_job,
            "DescribeTrainingJob": self.describe_training_job,
            "ListTrainingJobs": self.list_training_jobs,
            "StopTrainingJob": self.stop_training_job,
            "DeleteTrainingJob": self.delete_training_job,
            "Search": self.search,
            "AddTags": self.add_tags,
            "ListTags": self.list_tags,
        }

    def handle(self, operation: str, params: Params) -> tuple[int, Params]:
        """Answer a request as the service would: HTTP status and JSON body. Raises `AnswerLost`."""
        is_lost = False
        try:
            is_lost = self._faults.meet(self._settings())
            answer = 200, self._answer(operation, params)
        except Refused as refusal:
            answer = 400, {"__type": refusal.code, "message": refusal.message}
        if is_lost:
            raise AnswerLost(operation)
        return answer

    def _answer(self, operation: str, params: Params) -> Params:
        if operation not in self._operations:
            raise Refused("UnknownOperationException", f"The local SageMaker has no operation {operation}.")
        check_shape(operation, params)
        self._spend_token(operation)
        return self._operations[operation](params)

    # --- operations ---

    def create_training_job(self, params: Params) -> Params:
        check_create(params)
        name = params["TrainingJobName"]
        settings = self._settings()
        self._sweep_temporaries()
        with self._creating():
            if open_job(self.state_dir, name) is not None:
                raise _name_taken(name, settings)
            self._check_quota(params, settings)
            record = self._record(params, settings)
            try:
                job, lock = create_job(self.state_dir, name, record, params.get("Tags", []))
            except FileExistsError:
                raise _name_taken(name, settings) from None
        self._attend(job, lock)
        return {"TrainingJobArn": record["arn"]}

    def describe_training_job(self, params: Params) -> Params:
        seen = self._look(params["TrainingJobName"])
        if seen is None:
            raise invalid(_UNKNOWN)
        return views.description(seen.job, seen.rows, self._now())

    def list_training_jobs(self, params: Params) -> Params:
        shown = [seen.summary for seen in self._all(self._settings().list_lag_s)]
        return list_page(shown, params)

    def stop_training_job(self, params: Params) -> Params:
        seen = self._look(params["TrainingJobName"])
        if seen is None:
            raise invalid(_UNKNOWN)
        if begin_stop(seen.job, self._now(), "Stopping the training job", cause="user"):
            return {}
        last = seen.job.rows()[-1]
        if last.status == "Stopping" and self._settings().stop_again == "accept":
            return {}
        raise invalid(
            f"The request was rejected because the training job is in status {views.job_status(last)}. Please choose "
            "a training job in status [InProgress]."
        )

    def delete_training_job(self, params: Params) -> Params:
        seen = self._look(params["TrainingJobName"])
        if seen is None:
            raise invalid(_UNKNOWN)
        if seen.rows[-1].status not in ENDS:
            raise Refused(
                "ResourceInUse", f"Training job {seen.job.name} is in status {views.job_status(seen.rows[-1])}."
            )
        grave = new_temporary(self.state_dir, "delete")
        with suppress(FileNotFoundError):  # somebody else deletes it too
            if seen.job.is_attended():  # its supervisor tidies up, by path: there may be another job of this name soon
                end_all_of(seen.job.path)
            seen.job.path.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
        return {}

    def search(self, params: Params) -> Params:
        if params["Resource"] != "TrainingJob":
            raise invalid(f"The local SageMaker searches training jobs only, not {params['Resource']}.")
        records = [
            views.description(seen.job, seen.rows) | {"Tags": seen.job.tags()}
            for seen in self._all(self._settings().search_lag_s)
        ]
        chosen = [record for record in records if matches(record, params.get("SearchExpression", {}))]
        by, order = params.get("SortBy", "LastModifiedTime"), params.get("SortOrder", "Descending")
        page, token = turn_page(chosen, params, by=by, order=order)
        return {"Results": [{"TrainingJob": record} for record in page]} | token

    def add_tags(self, params: Params) -> Params:
        job = self._job_of(params["ResourceArn"])
        with self._creating():
            merged = {tag["Key"]: tag for tag in [*job.tags(), *params["Tags"]]}
            if len(merged) > 50:  # noqa: PLR2004 - a documented limit
                raise invalid("Too many tags: a resource can have at most 50.")
            job.write_tags(list(merged.values()))
        return {"Tags": list(merged.values())}

    def list_tags(self, params: Params) -> Params:
        return {"Tags": self._job_of(params["ResourceArn"]).tags()}

    # --- looking ---

    def _look(self, name: str) -> _JobSeen | None:
        """A job as it is now, with a supervisor; None for an unknown name."""
        seen = self._read(name)
        if seen is None or seen.rows[-1].status in ENDS:
            return seen
        with suppress(FileNotFoundError):  # deleted meanwhile
            if not seen.job.is_attended():
                self._revive(seen.job)
        return self._read(name)

    def _read(self, name: str) -> _JobSeen | None:
        known = self._seen.get(name)
        try:
            if known is not None and known.job.stamp() == known.stamp:
                return known
        except FileNotFoundError:
            self._seen.pop(name, None)
        job = open_job(self.state_dir, name)
        if job is None:
            return None
        try:
            stamp, rows = job.stamp(), job.rows()
        except FileNotFoundError:  # deleted in between
            return None
        seen = self._seen[name] = _JobSeen(stamp, job, rows, views.summary(job, rows))
        return seen

    def _all(self, lag_s: float) -> Iterator[_JobSeen]:
        """Every job, attended, as it was `lag_s` ago."""
        for name in job_names(self.state_dir):
            seen = self._look(name)
            if seen is not None and lag_s:
                seen = _as_of(seen, self._now() - lag_s)
            if seen is not None:
                yield seen

    def _revive(self, job: JobDir) -> None:
        """Deal with the death of an instance, unless somebody else does."""
        lock = job.take_lock()
        if lock is None:
            return
        try:
            if job.rows()[-1].status not in ENDS:  # it may have ended between our look and the lock
                end_all_of(job.path)
                bury(job)
            if job.rows()[-1].status not in ENDS:
                self._attend(job, os.dup(lock))
        finally:
            os.close(lock)

    def _attend(self, job: JobDir, lock: int) -> None:
        self._children.add(start_supervisor(job.path, lock, job.record.get("s3_endpoint")))
        for child in list(self._children):  # reap those that have ended: a zombie is litter
            with suppress(ChildProcessError):
                if os.waitpid(child, os.WNOHANG)[0] == 0:
                    continue
            self._children.discard(child)

    # --- creating ---

    def _record(self, params: Params, settings: LocalSettings) -> dict[str, Any]:
        name = params["TrainingJobName"]
        tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags", [])}
        return {
            "format": 1,
            "arn": f"arn:aws:sagemaker:{self.region}:{ACCOUNT}:training-job/{name}",
            "region": self.region,
            "created_at": self._now(),
            "request": {key: value for key, value in params.items() if key != "Tags"},
            "study_key": tags.get(STUDY_TAG),
            "settings": settings.as_json(),
            "saving": _saving(name, settings) if params.get("EnableManagedSpotTraining") else 0.0,
            "python": sys.executable,
            "environment": host_environment(),
            "s3_endpoint": self._s3_endpoint,
        }

    def _check_quota(self, params: Params, settings: LocalSettings) -> None:
        kind, spot = params["ResourceConfig"]["InstanceType"], bool(params.get("EnableManagedSpotTraining"))
        limit = (settings.spot_quota if spot else settings.on_demand_quota).get(kind)
        if limit is None:
            return
        used = sum(
            seen.job.request["ResourceConfig"]["InstanceCount"]
            for seen in self._all(0)
            if seen.rows[-1].status not in ENDS
            and seen.job.is_spot == spot
            and seen.job.request["ResourceConfig"]["InstanceType"] == kind
        )
        delta = params["ResourceConfig"]["InstanceCount"]
        if used + delta > limit:
            usage = f"{kind} for {'spot ' if spot else ''}training job usage"
            raise Refused(
                "ResourceLimitExceeded",
                f"The account-level service limit '{usage}' is {limit} Instances, with current utilization of {used} "
                f"Instances and a request delta of {delta} Instances. Please use AWS Service Quotas to request an "
                "increase for this quota.",
            )

    @contextmanager
    def _creating(self) -> Iterator[None]:
        """One at a time, so that a quota counts everybody."""
        with (self.state_dir / "create.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sweep_temporaries(self) -> None:
        """Remove what callers left that were killed half-way."""
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.state_dir / "tmp"):
                with suppress(OSError):
                    if entry.stat().st_mtime < self._now() - _STALE_S:
                        _remove(Path(entry.path))

    # --- small things ---

    def _settings(self) -> LocalSettings:
        return read_settings(self.state_dir)

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _job_of(self, arn: str) -> JobDir:
        job = open_job(self.state_dir, arn.rpartition(":training-job/")[2])
        if job is None:
            raise invalid(_UNKNOWN)
        return job

    def _spend_token(self, operation: str) -> None:
        """A token bucket of one second's calls, shared by all processes."""
        rate = self._settings().rates.get(operation)
        if rate is None:
            return
        now = self._now()
        with (self.state_dir / f"rate-{operation}.json").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            tokens, then = json.loads(file.read() or f"[{max(rate, 1)}, {now}]")
            tokens = min(max(rate, 1.0), tokens + max(0.0, now - then) * rate)
            file.truncate(0)
            file.write(json.dumps([max(tokens - 1, 0) if tokens >= 1 else tokens, now]))
        if tokens < 1:
            raise Refused("ThrottlingException", "Rate exceeded")


def _as_of(seen: _JobSeen, moment: float) -> _JobSeen | None:
    rows = [row for row in seen.rows if row.at <= moment]
    return _JobSeen(seen.stamp, seen.job, rows, views.summary(seen.job, rows)) if rows else None


def _name_taken(name: str, settings: LocalSettings) -> Refused:
    if settings.name_taken == "bare":
        return Refused("ResourceInUse", "Resource is in use.")
    return Refused(
        "ResourceInUse",
        "Training job names must be unique within an AWS account and region, and a training job with this name "
        f"already exists ({name})",
    )


def _saving(name: str, settings: LocalSettings) -> float:
    draw = int.from_bytes(hashlib.sha256(f"{settings.saving_seed}:{name}".encode()).digest()[:6], "big") / 2**48
    return round(settings.saving_low + (settings.saving_high - settings.saving_low) * draw, 4)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
