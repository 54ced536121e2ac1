"""The one job of `doctor --first-dollar`, from its creation to its end: created, looked at, stopped.

Rules: however the watching is left, the job is asked to stop.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from tuner.aws import hints
from tuner.aws.connections import Aws, AwsError, ask
from tuner.aws.probe_plan import AFTER_S, Pace, ProbePlan, probe_request, upload_probe
from tuner.core.clock import Clock
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import (
    JobError,
    JobNameTaken,
    JobNotFound,
    JobRequest,
    JobService,
    JobStatus,
    JobSummary,
    Observation,
    ServiceUnavailable,
)
from tuner.storage.objects import ObjectInfo, Objects

_STOP_TRIES = 5


class ProbeBackend(Protocol):
    """Where the job runs: `operations.backend.AwsBackend`."""

    @property
    def aws(self) -> Aws: ...

    @property
    def scope(self) -> str: ...

    def jobs(self) -> JobService: ...

    def objects(self) -> Objects: ...


@dataclass(slots=True)
class Seen:
    """What was watched while the job lived."""

    last: Observation | None = None
    # when each status was seen first, in which way
    described: dict[str, datetime] = field(default_factory=dict)
    listed: dict[str, datetime] = field(default_factory=dict)
    notified: dict[str, datetime] | None = None  # by events; None: no queue was read
    may_exist: bool = False  # the job was asked for, and not refused
    trained: bool = False
    billable_mid_run: bool = False
    training_time_mid_run: bool = False
    stop_sent_at: datetime | None = None
    stop_again: str | None = None
    name_taken: str | None = None


def watch(  # noqa: PLR0917 - the parts of one run
    planned: ProbePlan,
    place: ProbeBackend,
    objects: Objects,
    queue: str | None,
    clock: Clock,
    report: Callable[[str], None],
    pace: Pace,
) -> Seen:
    jobs, seen = place.jobs(), Seen(notified=None if queue is None else {})
    request = probe_request(planned, upload_probe(planned, objects), pace)
    gives_up_at = clock.now() + timedelta(seconds=planned.max_wait_s + AFTER_S + 600)
    final_at: datetime | None = None
    try:  # from here on there may be a job, also where the answer to its creation was lost
        _create(jobs, request, seen)
        report(f"{planned.name}: created")
        seen.name_taken = _name_taken(jobs, request)
        while clock.now() < gives_up_at:
            _look(planned, jobs, clock, seen, report)
            if queue is not None:
                _listen(planned, place.aws, queue, clock, seen, report, pace)
            last, now = seen.last, clock.now()
            if last is not None and last.status.final:
                final_at = final_at or now
                # the bill may come a moment after the end, the list and the event later still
                notified = seen.notified is None or status_of(last) in seen.notified
                settled = last.billable_s is not None and status_of(last) in seen.listed and notified
                if settled or (now - final_at).total_seconds() > pace.settle_s:
                    return seen
            elif seen.stop_sent_at is None and seen.trained and len(list(beats(planned, objects))) >= pace.beats:
                # not before a look showed it training: files may come between a look and here, and what is told of a
                # running job and of its end would be lost
                _stop(planned, place.aws, clock, seen, report)
            clock.wait(now + timedelta(seconds=pace.poll_s))
        raise UserError(
            f"doctor: {planned.name} did not end in time; it is asked to stop: see it in the console", Exit.NOT_FINISHED
        )
    finally:
        if seen.last is None or not seen.last.status.final:
            _stop_for_certain(planned, jobs, clock, seen, report, pace)


def _stop_for_certain(  # noqa: PLR0917 - as above
    planned: ProbePlan, jobs: JobService, clock: Clock, seen: Seen, report: Callable[[str], None], pace: Pace
) -> None:
    """Stop several times: a call may be throttled, and a job whose creation was not answered may appear late."""
    for left in reversed(range(_STOP_TRIES)):
        try:
            jobs.stop(planned.name)
        except JobNotFound:
            if not seen.may_exist:
                return
        except JobError as error:
            if not left:
                report(f"{planned.name}: could not be stopped ({error}); it ends by its own limits")
        else:
            report(f"{planned.name}: asked to stop")
            return
        if left:
            clock.wait(clock.now() + timedelta(seconds=pace.poll_s))


def _create(jobs: JobService, request: JobRequest, seen: Seen) -> None:
    seen.may_exist = True
    try:
        jobs.create(request)
    except ServiceUnavailable:
        raise
    except Exception:  # a refusal, or a bug before anything was sent; an interrupt may come after it was
        seen.may_exist = False
        raise


def _name_taken(jobs: JobService, request: JobRequest) -> str | None:
    """Ask for the same name again while the job lives: it is refused, and costs nothing."""
    try:
        jobs.create(request)
    except JobNameTaken as error:
        return str(error)
    except JobError:
        return None
    return "accepted: the name was given twice"


def _look(planned: ProbePlan, jobs: JobService, clock: Clock, seen: Seen, report: Callable[[str], None]) -> None:
    """Describe, then list: a list that is behind shows an older status than the one just described."""
    with suppress(JobError):  # the next look may succeed
        last = jobs.describe(planned.name)
        if seen.last is None or seen.last.secondary != last.secondary:
            report(f"{planned.name}: {last.secondary}")
        seen.last = last
        seen.described.setdefault(status_of(last), clock.now())
        if last.status is JobStatus.IN_PROGRESS and last.secondary == "Training":
            seen.trained = True
            seen.billable_mid_run |= last.billable_s is not None
            seen.training_time_mid_run |= last.training_s is not None
        since = last.created_at - timedelta(hours=1)
        for summary in jobs.list_changed(planned.name, created_after=since, modified_after=since):
            seen.listed.setdefault(status_of(summary), clock.now())


def status_of(seen: Observation | JobSummary) -> str:
    return f"{seen.status}/{seen.secondary}"


def _listen(  # noqa: PLR0917 - as above
    planned: ProbePlan, aws: Aws, queue: str, clock: Clock, seen: Seen, report: Callable[[str], None], pace: Pace
) -> None:
    """Take this job's events; those of others stay. What was lost with one look makes nothing certain any more."""
    if seen.notified is None:
        return
    try:
        for event in hints.receive(aws.lasting("sqs"), queue, planned.name.__eq__, wait_s=pace.listen_s):
            status = f"{event.get('TrainingJobStatus')}/{event.get('SecondaryStatus')}"
            seen.notified.setdefault(status, clock.now())
    except AwsError as error:
        seen.notified = None
        report(f"{planned.name}: which events come is not seen: {error}")


def _stop(planned: ProbePlan, aws: Aws, clock: Clock, seen: Seen, report: Callable[[str], None]) -> None:
    """Stop twice: the answer to the second call is not documented."""
    stop = aws.client("sagemaker").stop_training_job
    try:
        ask(stop, TrainingJobName=planned.name)
    except AwsError as error:
        if "is in status" not in str(error):
            raise
        return  # it has ended since the last look: the next one shows how
    seen.stop_sent_at = clock.now()
    report(f"{planned.name}: asked to stop")
    try:
        ask(stop, TrainingJobName=planned.name)
        seen.stop_again = "accepted"
    except AwsError as error:
        seen.stop_again = str(error)


def beats(planned: ProbePlan, objects: Objects) -> Iterator[ObjectInfo]:
    for info in objects.list(f"{planned.base}checkpoints/beat-"):
        if info.uri.endswith(".json"):
            yield info
