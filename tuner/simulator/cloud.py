"""A cloud in memory, in virtual time: a job service, what lies under its jobs' prefixes, and a bill of its own.

It exists to try the engine against everything a cloud does, thousands of times, in milliseconds: capacity that goes
away, errors on any call, answers that are lost, lists that lag. It has no containers and no files: training is a
curve, a checkpoint is a number.

Rules:
- It owns no policy and imports no engine code: what it does follows from requests, its settings and its seed alone.
- Same seed and same calls at the same times: same history, to the microsecond. Randomness about a job is drawn from the
  seed and the job's name, never from the order of calls.
- Time passes only in `advance`. Inside it is seconds since the start, rounded to microseconds, so that an event and
  the moment shown for it are the same; at the port it is aware datetimes.
- What an instance was up is kept twice: `describe` adds up the history, `bill` the instance's own starts and ends.
- What AWS does not document is a setting, in either position.
"""

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

from tuner.core.clock import VirtualClock
from tuner.core.jobs import (
    DIGEST_VARIABLE,
    CapacityUnavailable,
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
)
from tuner.core.records import MetricPoint, RunRecord
from tuner.simulator.parts import (
    Outage,
    Prefix,
    Reader,
    Script,
    SimulatedBill,
    SimulatedFaults,
    SimulatedJob,
    SimulatorSettings,
    smooth_curve,
)
from tuner.simulator.schedule import Schedule

_NO_CAPACITY = "Insufficient capacity error from EC2 while launching instances, retrying!"
_STOP_S = 1.0  # until a job without an instance, or one whose script ends at SIGTERM, has stopped
_HOST = "algo-1"


_Action: TypeAlias = Callable[[SimulatedJob], None]
_PoolName: TypeAlias = str | tuple[str, str] | None


class SimulatedCloud:
    """`JobService` and `EventSource` of `clock`, which it joins; see the module for its rules.

    `scripts` says what a job runs, from its request; `outages` are times without any spot capacity, in order. `pools`
    are instance types, or types and subnets, that have times of their own instead.
    """

    def __init__(
        self,
        clock: VirtualClock,
        seed: int,
        *,
        scripts: Callable[[JobRequest], Script] = lambda _request: Script(),
        outages: Iterable[Outage] = (),
        pools: Mapping[str | tuple[str, str], Iterable[Outage]] | None = None,
        settings: SimulatorSettings | None = None,
        faults: SimulatedFaults | None = None,
    ) -> None:
        self.jobs: dict[str, SimulatedJob] = {}
        self.prefixes: defaultdict[str, Prefix] = defaultdict(Prefix)  # by checkpoint URI
        self.calls: Counter[str] = Counter()
        self.settings = settings or SimulatorSettings()
        self.faults = faults or SimulatedFaults()
        self._clock, self._seed, self._scripts = clock, seed, scripts
        self._curve = smooth_curve(seed)
        self._random = random.Random(seed)  # noqa: S311 - a simulation, not a secret
        self._start, self._now = clock.now(), 0.0
        self._schedule = Schedule()
        self._live: dict[str, SimulatedJob] = {}
        self._deleted: set[str] = set()
        self._changed: dict[str, SimulatedJob] = {}  # least recently modified first
        self._slots: defaultdict[str, deque[tuple[JobError | OSError, bool]]] = defaultdict(deque)
        self._traps: dict[tuple[str, str], float] = {}
        # by pool; every job that belongs to no other belongs to None
        self._outages: dict[_PoolName, Iterator[Outage]] = {None: iter(outages)}
        self._outages |= {pool: iter(times) for pool, times in (pools or {}).items()}
        self._dry: set[_PoolName] = set()
        for pool in self._outages:
            self._await_outage(pool)
        clock.attach(self)

    # ---- the port

    def create(self, request: JobRequest) -> str:
        self._enter("create")
        self._check(request)
        arn = f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{request.name}"
        job = SimulatedJob(request=request, script=self._scripts(request), arn=arn, created_at=self._moment())
        self.jobs[job.name] = self._live[job.name] = job
        self._row(job, "Starting", "Starting the training job.")
        if request.max_wait_s is not None:
            self._after(request.max_wait_s, job, lambda job: self._stop(job, "MaxWaitTimeExceeded"), lasting=True)
        self._launch(job)
        self._leave("create")
        return arn

    def describe(self, name: str) -> Observation:
        self._enter("describe")
        job = self._find(name)
        training_s = job.training_s if job.status.final else None
        return Observation(
            name=name,
            arn=job.arn,
            status=job.status,
            secondary=job.secondary,
            history=tuple(job.history),
            created_at=job.created_at,
            modified_at=job.versions[-1].modified_at,
            digest=job.request.environment.get(DIGEST_VARIABLE),
            failure=job.failure,
            training_s=training_s,
            billable_s=job.billable_s(training_s, self.settings.saving),
            model_uri=job.model_uri,
            asked=job.request,
        )

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime) -> tuple[JobSummary, ...]:
        self._enter("list")
        horizon = self._moment()
        if self._happens(self.faults.lagging):
            horizon -= timedelta(seconds=self.faults.lag_s)
        times = 2 if self._happens(self.faults.repeated) else 1
        seen: list[JobSummary] = []
        for job in reversed(self._changed.values()):
            if job.versions[-1].modified_at < modified_after:
                break
            shown = next((v for v in reversed(job.versions) if v.modified_at <= horizon), None)
            if shown and shown.name.startswith(prefix) and shown.created_at >= created_after:
                seen += [shown] * (times if shown.modified_at >= modified_after else 0)
        return tuple(seen)

    def stop(self, name: str) -> None:
        self._enter("stop")
        self._stop(self._find(name), "Stopped")
        self._leave("stop")

    # ---- the world

    def next_event_at(self) -> datetime | None:
        at = self._schedule.next_at()
        return None if at is None else self._moment(at)

    def advance(self, to: datetime) -> None:
        """Let everything up to and including `to` happen; a `to` that has passed changes nothing."""
        end = round((to - self._start).total_seconds(), 6)
        while (event := self._schedule.pop(end)) is not None:
            self._now = max(self._now, event.at)
            if event.due:
                event.action()
        self._now = max(self._now, end)

    def progress(self, *, batch: int | None = None) -> Reader:
        """A reader that starts from the beginning, as after a restart; at most `batch` points a call."""
        return Reader(self.prefixes, batch, lambda: self._refuse("read"))

    def bill(self, name: str) -> SimulatedBill:
        """From the instance's own starts and ends, so that `describe` has something to be compared with."""
        return self.jobs[name].bill(self.settings.saving)

    # ---- misfortune on demand

    def fail_next(self, call: str, error: JobError | OSError, *, lost: bool = False) -> None:
        """One more `create`, `describe`, `list`, `stop` or `read` of progress raises `error`.

        `lost`: a create or stop raises it after its effect. Reads raise OSError, the others JobErrors.
        """
        assert call in (("create", "stop") if lost else ("create", "describe", "list", "stop", "read")), call
        self._slots[call].append((error, lost))

    def calm(self) -> None:
        """No more faults of the port, planned or seeded."""
        self.faults = SimulatedFaults()
        self._slots.clear()

    def interrupt(self, name: str | None = None) -> None:
        """Take the instances of one spot job, or of all; there is capacity for them again at once."""
        self.advance(self._clock.now())
        self._interrupt([self.jobs[name]] if name else list(self._live.values()))

    def interrupt_when(self, name: str, status: str, after_s: float = 0.0) -> None:
        """Once: take the job's instances so long after it next enters `status`. The job need not exist yet."""
        self._traps[name, status] = after_s

    def restart(self, name: str) -> None:
        """The service replaces the job's instances: no interruption, but training begins again."""
        self.advance(self._clock.now())
        self._lose(self.jobs[name], "Restarting", "Launched instance was unhealthy, replacing it!")

    def fail(self, name: str, reason: str) -> None:
        """The job fails now, with this FailureReason."""
        self.advance(self._clock.now())
        self._fail(self.jobs[name], reason)

    def delete(self, name: str) -> None:
        """Somebody deletes the record of a job that has ended, its figures with it; its name stays used."""
        assert self.jobs[name].status.final, f"{name} is {self.jobs[name].status}: only a job that ended can be deleted"
        del self.jobs[name], self._changed[name]
        self._deleted.add(name)

    def show(self, name: str, status: str) -> None:
        """Add a row to the job's history and change nothing else, as a status that came later to SageMaker would."""
        self.advance(self._clock.now())
        self._row(self.jobs[name], status)

    # ---- inside: calls

    def _enter(self, call: str) -> None:
        self.advance(self._clock.now())
        self.calls[call] += 1
        self._refuse(call)
        if self._happens(self.faults.refused):
            raise self._random.choice(self.faults.errors)(f"{call}: refused by the simulation")

    def _refuse(self, call: str) -> None:
        slots = self._slots[call]
        if slots and not slots[0][1]:
            raise slots.popleft()[0]

    def _leave(self, call: str) -> None:
        if self._slots[call]:
            raise self._slots[call].popleft()[0]
        if self._happens(self.faults.lost):
            raise ServiceUnavailable(f"{call}: the answer was lost by the simulation")

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability

    def _check(self, request: JobRequest) -> None:
        if request.name in self.jobs or request.name in self._deleted:
            raise JobNameTaken(f"create of {request.name}: a job of this name exists already")
        if (request.max_wait_s is not None) != request.spot:
            raise RequestRejected(f"create of {request.name}: Invalid MaxWaitTimeInSeconds. Spot needs it, alone")
        if request.max_wait_s is not None and request.max_wait_s < request.max_run_s:
            raise RequestRejected(f"create of {request.name}: MaxWaitTimeInSeconds is below MaxRuntimeInSeconds")
        kind = (request.instance_type, request.spot)
        others = (job.request for job in self._live.values())
        used = sum(other.instance_count for other in others if (other.instance_type, other.spot) == kind)
        quota = self.settings.quotas.get(request.instance_type, self.settings.quota)
        if quota is not None and used + request.instance_count > quota:
            raise CapacityUnavailable(
                f"create of {request.name}: The account-level service limit '{request.instance_type} for training job "
                f"usage' is {quota} Instances, with current utilization of {used} Instances",
                limit=quota,
            )

    def _find(self, name: str) -> SimulatedJob:
        if name not in self.jobs:
            raise JobNotFound(f"{name}: Requested resource not found.")
        return self.jobs[name]

    # ---- inside: time

    def _moment(self, at: float | None = None) -> datetime:
        return self._start + timedelta(seconds=self._now if at is None else at)

    def _after(self, delay_s: float, job: SimulatedJob, action: _Action, *, lasting: bool = False) -> None:
        """Something that happens to the job, unless it loses its instances before; `lasting`: even then."""
        self._schedule.plan(self._now + delay_s, lambda: action(job), job, None if lasting else job.life)

    def _pool(self, job: SimulatedJob) -> _PoolName:
        kind, subnets = job.request.instance_type, job.request.subnets
        names = [*((kind, subnet) for subnet in subnets), kind]
        return next((name for name in names if name in self._outages), None)

    def _in_pool(self, pool: _PoolName) -> list[SimulatedJob]:
        return [job for job in self._live.values() if self._pool(job) == pool]

    def _await_outage(self, pool: _PoolName) -> None:
        outage = next(self._outages[pool], None)
        if outage is not None:
            self._schedule.plan(outage[0], lambda: self._capacity_goes(pool), None, None)
            if math.isfinite(outage[1]):
                self._schedule.plan(outage[1], lambda: self._capacity_comes(pool), None, None)

    def _capacity_goes(self, pool: _PoolName) -> None:
        self._dry.add(pool)
        self._relaunch(pool)  # into the waiting
        self._interrupt(self._in_pool(pool))

    def _capacity_comes(self, pool: _PoolName) -> None:
        self._dry.discard(pool)
        self._await_outage(pool)
        self._relaunch(pool)

    def _relaunch(self, pool: _PoolName) -> None:
        for job in self._in_pool(pool):
            if job.request.spot and job.up_since is None and job.status is JobStatus.IN_PROGRESS:
                self._launch(job)

    def _interrupt(self, jobs: Iterable[SimulatedJob]) -> None:
        for job in jobs:
            if job.request.spot:
                self._lose(job, "Interrupted", "Training job interrupted")

    # ---- inside: the life of a job

    def _row(self, job: SimulatedJob, status: str, message: str = "") -> None:
        """Close the open row and begin another; a final one is closed at once."""
        now = self._moment()
        if job.history:
            job.history[-1] = replace(job.history[-1], ended_at=now)
        ended_at = now if job.status.final else None
        job.history.append(HistoryRow(status=status, started_at=now, ended_at=ended_at, message=message))
        self._touch(job)
        after_s = self._traps.pop((job.name, status), None)
        if after_s is not None:
            self._after(after_s, job, lambda job: self._lose(job, "Interrupted", "Training job interrupted"))

    def _touch(self, job: SimulatedJob) -> None:
        job.versions.append(
            JobSummary(
                name=job.name,
                arn=job.arn,
                status=job.status,
                secondary=job.secondary,
                created_at=job.created_at,
                modified_at=self._moment(),
            )
        )
        self._changed.pop(job.name, None)
        self._changed[job.name] = job

    def _launch(self, job: SimulatedJob) -> None:
        job.life += 1
        if job.request.spot and self._pool(job) in self._dry:
            job.history[-1] = replace(job.history[-1], message=_NO_CAPACITY)
            self._touch(job)
            return
        draw = random.Random(f"{self._seed}:{job.name}:{job.runs}").random()  # noqa: S311 - a simulation
        self._after(job.script.start_s * (0.5 + draw), job, self._up)

    def _up(self, job: SimulatedJob) -> None:
        if job.script.failure and job.script.fails_at is None:
            self._fail(job, job.script.failure)
        else:
            self._begin(job)

    def _begin(self, job: SimulatedJob) -> None:
        job.up_since = self._now
        used_s = 0.0 if self.settings.max_run_per_run else sum(end - start for start, end in job.up)
        self._after(max(0.0, job.request.max_run_s - used_s), job, lambda job: self._stop(job, "MaxRuntimeExceeded"))
        if job.script.download_s:
            self._row(job, "Downloading", "Downloading input data")
            self._after(job.script.download_s, job, self._train)
        else:
            self._train(job)

    def _train(self, job: SimulatedJob) -> None:
        self._row(job, "Training", "Training image download completed. Training in progress.")
        job.runs += 1
        job.run = f"{round(self._now * 1e3):013d}r{job.runs}"
        prefix = self.prefixes[job.request.checkpoint_uri]
        prefix.manifests = job.script.manifests
        newest = prefix.newest
        job.step = max(0, newest[0] - job.script.behind) if newest and job.script.resumes else 0
        if job.request.entrypoint:  # the bootstrap's; the image's own entrypoint keeps no records
            shown = newest if job.script.manifests else None
            prefix.records.append(
                RunRecord(
                    attempt=_attempt(job.request),
                    run=job.run,
                    host=_HOST,
                    started_at=self._moment(),
                    resume_step=shown[0] if shown else None,
                    resume_saved_at=shown[1] if shown else None,
                    own_files=len(prefix.saved),
                    newest_step=max((step for step in (prefix.torn, *prefix.saved) if step is not None), default=None),
                )
            )
        self._next_step(job)

    def _next_step(self, job: SimulatedJob) -> None:
        if job.step >= job.script.epochs:
            self._upload(job)
        elif job.step != job.script.hangs_after:
            self._after(job.script.step_s, job, self._end_step)

    def _end_step(self, job: SimulatedJob) -> None:
        job.step += 1
        script = job.script
        if script.failure and script.fails_at == job.step:
            self._fail(job, script.failure)
            return
        if script.metric and self._synced(job):
            curve = script.curve or self._curve
            point = MetricPoint(
                attempt=_attempt(job.request),
                run=job.run,
                host=_HOST,
                step=job.step if script.numbered else None,
                at=self._moment(),
                name=script.metric,
                value=curve(job.request.hyperparameters, job.step),
            )
            self.prefixes[job.request.checkpoint_uri].points.append(point)
        if script.checkpoint_every and job.step % script.checkpoint_every == 0:
            self._after(script.save_s, job, self._save)
        else:
            self._next_step(job)

    def _save(self, job: SimulatedJob) -> None:
        if self._synced(job):
            self.prefixes[job.request.checkpoint_uri].save(job.step, self._moment())
        self._next_step(job)

    def _synced(self, job: SimulatedJob) -> bool:
        return job.script.sync_stops_after is None or job.step <= job.script.sync_stops_after

    def _upload(self, job: SimulatedJob) -> None:
        job.life += 1  # the limit on training no longer counts
        if job.status is JobStatus.IN_PROGRESS:
            self._row(job, "Uploading", "Uploading generated training model")
        self._after(job.script.upload_s, job, self._finish)

    def _stop(self, job: SimulatedJob, end: str) -> None:
        """Send the script SIGTERM, for a stop order or a limit, and give it its grace period."""
        if job.status is not JobStatus.IN_PROGRESS:
            return
        uploading = job.secondary == "Uploading"
        obeys = job.up_since is None or not job.script.ignores_sigterm
        if obeys and not uploading:
            job.life += 1  # before the row: what is planned for the time after it is to happen
        job.status, job.end = JobStatus.STOPPING, end
        self._row(job, "Stopping", "Stopping the training job")
        if not uploading:
            ends = self._finish if job.up_since is None else self._upload
            self._after(_STOP_S if obeys else self.settings.stop_grace_s, job, ends)

    def _lose(self, job: SimulatedJob, status: str, message: str) -> None:
        """The instances are gone, without notice; what is under the prefix stays, what the run knew does not."""
        if job.up_since is None or job.status.final:
            return
        self._down(job)
        prefix = self.prefixes[job.request.checkpoint_uri]
        if job.script.torn and prefix.saved:
            prefix.torn = prefix.saved.popitem()[0]  # the latest
        if job.status is JobStatus.STOPPING:
            self._finish(job)
            return
        self._row(job, status, message)
        if self.settings.starting_after_interruption:
            self._row(job, "Starting", "Launching requested ML instances.")
        self._launch(job)

    def _down(self, job: SimulatedJob) -> None:
        job.life += 1
        if job.up_since is not None:
            job.up.append((job.up_since, self._now))
            job.up_since = None

    def _finish(self, job: SimulatedJob) -> None:
        stopped = job.status is JobStatus.STOPPING
        self._end(job, JobStatus.STOPPED if stopped else JobStatus.COMPLETED, job.end)

    def _fail(self, job: SimulatedJob, reason: str) -> None:
        if not job.status.final:
            job.failure = reason[:1024]
            self._end(job, JobStatus.FAILED, "Failed")

    def _end(self, job: SimulatedJob, status: JobStatus, secondary: str) -> None:
        self._down(job)
        del self._live[job.name]
        job.status = status
        self._row(job, secondary, job.failure)


def _attempt(request: JobRequest) -> int:
    return int(request.environment.get("TUNER_ATTEMPT", "1"))
