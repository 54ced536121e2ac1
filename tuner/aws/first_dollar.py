"""One smallest spot job that finds out what AWS does not document, as far as one job for a few cents can.

It exists because what we assume of AWS (README, "What AWS leaves open") differs from account to account or was never
measured by us, and because a first job through the whole path (role, image, bucket, signals, bill) proves more than
any look. What was found is recorded as facts of the account and region.

Rules: the ceiling is known before anything is created and is below five cents even if AWS bills the whole of
`MaxWaitTimeInSeconds`. All of it lies below one prefix, which is deleted at the end. However it is left, the job is
asked to stop. What one job cannot show is said to be unknown, never guessed. An absent answer is null. A job that
failed, never trained or saved nothing is a fault of the path that it was to prove, whatever facts it left. It is as the
study's own jobs are but for its machine, its code and its limits; where its image is another, that is said first.
"""

import io
import json
import random
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Protocol

from tuner.aws import hints, preflight
from tuner.aws.connections import Aws, AwsError, ask, cli_options
from tuner.aws.iam_policy import LOG_GROUP, PROBE_PREFIX
from tuner.aws.rates import RATES_FACT
from tuner.core.clock import Clock
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import (
    Channel,
    JobError,
    JobNameTaken,
    JobNotFound,
    JobRequest,
    JobService,
    JobStatus,
    JobSummary,
    Observation,
    ServiceUnavailable,
    classify_failure,
)
from tuner.core.prices import PriceUnknown, Rate, RateCard, cost_microusd, usd
from tuner.core.records import AttemptEnd, Fact, Json
from tuner.engine.liveness import SYNC_FACT
from tuner.spec.records import MICROUSD
from tuner.spec.study_file import StudySpec
from tuner.spec.workload import ENTRYPOINT, STUDY_TAG, root
from tuner.storage import bundle as packaging
from tuner.storage.objects import ObjectInfo, Objects, ObjectsError

INSTANCE_TYPE = "ml.m5.large"  # the cheapest of those that accounts may use on spot without asking
CEILING_USD = Decimal("0.05")
SOURCE = "doctor --first-dollar"
_PREFIX = "probe."  # of the names of its facts

_MAX_RUN_S = 300
_MAX_WAIT_S, _MAX_WAIT_LEAST_S = 900, 420
# What may be billed after the last limit: the stop's grace, and uploading next to nothing.
_AFTER_S = 120 + 180
# Room for a framework image. The study's own volume may cost more than the instance: a terabyte is $0.20 an hour.
_VOLUME_GB = 30
_STOP_TRIES = 5
_LETTERS = "bcdfghjklmnpqrstvwxz"
_SCRIPT = "first_dollar_probe.py"
# A framework's image for these is another than the one for CPUs.
_ACCELERATED = ("ml.p", "ml.g", "ml.trn", "ml.inf")
# Of `sagemaker.request`: what is about other machines than ours, some of them billed beside it (of the limits that one
# is for accelerated instances alone); and what would leave a version of a model that is none.
_NOT_OURS = (
    "ResourceConfig", "StoppingCondition", "DebugRuleConfigurations", "ProfilerRuleConfigurations",
    "ModelPackageConfig",
)  # fmt: skip
_RATES = {
    f"Rate of {operation} requests": operation
    for operation in ("CreateTrainingJob", "DescribeTrainingJob", "ListTrainingJobs", "StopTrainingJob", "Search")
}
# What one job cannot show, and why.
BEYOND = (
    "whether a script is told when spot capacity is reclaimed: unless it happened to this job",
    "whether MaxRuntimeInSeconds starts anew after an interruption: it would take hours of a job",
    "whether TrainingTimeInSeconds counts the gap between two runs: unless this job was interrupted",
    "how far Search lags: it is not used",
)


class ProbeBackend(Protocol):
    """Where the job runs: `operations.backend.AwsBackend`."""

    @property
    def aws(self) -> Aws: ...

    @property
    def scope(self) -> str: ...

    def jobs(self) -> JobService: ...

    def objects(self) -> Objects: ...


class FactStore(Protocol):
    """The part of the store that keeps facts."""

    def facts(self, scope: str) -> list[Fact]: ...

    def put_fact(self, fact: Fact) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast: tests are faster."""

    poll_s: float = 5.0
    beat_s: float = 5.0
    beats: int = 12  # files in the store before the job is stopped
    settle_s: float = 30.0  # how long the bill, the list and the last event may follow the end
    listen_s: int = 1  # how long a look into the queue of events waits, in whole seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """What will be asked for, and the most that it can cost."""

    spec: StudySpec
    name: str
    rate: Rate
    max_wait_s: int
    ceiling_microusd: int

    @property
    def base(self) -> str:
        """The prefix of everything that is written."""
        return f"{root(self.spec)}doctor/{self.name}/"

    def lines(self, study: StudySpec) -> list[str]:
        """What the user agrees to; `study` is the file as it is written."""
        spec = self.spec
        source = f"{self.rate.basis}, {self.rate.as_of}" if self.rate.as_of else self.rate.basis
        return [
            f"one spot job on 1 x {INSTANCE_TYPE} in {spec.region}, named {self.name}",
            f"image {spec.training.image_uri}, role {spec.sagemaker.role}",
            *_other_image(study),
            f"it is stopped after a minute or two of training, at the latest after {self.max_wait_s} s of waiting",
            f"at ${self.rate.usd_per_hour:f}/h ({source}) it costs at most {usd(self.ceiling_microusd)}; its disk less",
        ]


def _other_image(study: StudySpec) -> Iterator[str]:
    kinds = [kind for kind in study.training.instance_types if kind.startswith(_ACCELERATED)]
    if study.training.framework is not None and kinds:
        yield f"that is the framework's image for CPUs: the one for {', '.join(kinds)} is another, and is not tried"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOutcome:
    """What the job showed. `fault`: why a study would not work here, and what to look at, in one line."""

    facts: tuple[Fact, ...]
    fault: str | None


@dataclass(slots=True)
class Seen:
    """What was watched while the job lived."""

    last: Observation | None = None
    # when each status was seen first, in which way
    described: dict[str, datetime] = field(default_factory=dict)
    listed: dict[str, datetime] = field(default_factory=dict)
    told: dict[str, datetime] | None = None  # by events; None: nobody listened
    may_exist: bool = False  # the job was asked for, and not refused
    trained: bool = False
    billable_mid_run: bool = False
    training_time_mid_run: bool = False
    stop_sent_at: datetime | None = None
    stop_again: str | None = None
    name_taken: str | None = None


def smallest(spec: StudySpec) -> StudySpec:
    """The study, cut down to the one job: then image, quota and price are looked up for its type, and its request.

    Raises UserError for a study that has no image to try it with.
    """
    if spec.training.algorithm is not None:
        raise UserError(
            f"doctor: study {spec.name} trains a built-in algorithm, which carries no code of ours: "
            "name a study with an image",
            Exit.USAGE,
        )
    return replace(
        spec,
        trials=1,
        parallel=1,
        training=replace(spec.training, instance_types=(INSTANCE_TYPE,), instance_count=1, inputs=(), secrets={}),
        sagemaker=replace(spec.sagemaker, request=_raw(spec.sagemaker.request)),
        capacity=replace(spec.capacity, policy="spot", on_demand_after_losses=None),
        budget=replace(spec.budget, usd=None, per_trial_usd=None),
    )


def plan(spec: StudySpec, rates: Mapping[str, Rate], rng: random.Random) -> ProbePlan:
    """What a completed study's account is asked for. Raises UserError where five cents cannot be promised."""
    try:
        rate = rates.get(INSTANCE_TYPE) or RateCard(spec.prices).rate(INSTANCE_TYPE, spec.region)
    except PriceUnknown as error:
        raise UserError(f"doctor: no ceiling can be promised: {error}", Exit.USAGE) from error
    affordable_s = int(CEILING_USD * MICROUSD * 3600 / rate.microusd_per_hour) - _AFTER_S - 1
    max_wait_s = min(_MAX_WAIT_S, affordable_s)
    if max_wait_s < _MAX_WAIT_LEAST_S:
        raise UserError(
            f"doctor: at ${rate.usd_per_hour:f}/h a job on {INSTANCE_TYPE} cannot be kept below ${CEILING_USD}: "
            "use a region where it is cheaper",
            Exit.REFUSED,
        )
    return ProbePlan(
        spec=spec,
        name=PROBE_PREFIX + "".join(rng.choice(_LETTERS) for _ in range(6)),
        rate=rate,
        max_wait_s=max_wait_s,
        ceiling_microusd=cost_microusd(max_wait_s + _AFTER_S, 1, rate.microusd_per_hour),
    )


def run(
    planned: ProbePlan,
    place: ProbeBackend,
    store: FactStore,
    clock: Clock,
    *,
    say: Callable[[str], None],
    pace: Pace | None = None,
) -> ProbeOutcome:
    """Run the job, watch it, record what was found. Raises JobError, AwsError, ObjectsError, UserError."""
    pace = pace or Pace()
    objects = place.objects()
    queue = hints.queue_of(store.facts(place.scope))
    try:
        seen = _watch(planned, place, objects, queue, clock, say, pace)
        found = dict(_findings(planned, seen, objects))
    finally:
        with suppress(ObjectsError):  # a few kilobytes; what went wrong first is said
            objects.delete([info.uri for info in objects.list(planned.base)])
    found[RATES_FACT.removeprefix(_PREFIX)] = _rates(place.aws)
    now = clock.now()
    facts = tuple(
        Fact(
            scope=place.scope, name=f"{_PREFIX}{name}", value=value, learned_at=now, source=f"{SOURCE} ({planned.name})"
        )
        for name, value in sorted(found.items())
        if value is not None
    )
    for fact in facts:
        store.put_fact(fact)
    return ProbeOutcome(
        facts=facts, fault=_fault(planned, seen, saved=found[SYNC_FACT.removeprefix(_PREFIX)] is not None)
    )


# --- the job


def _watch(  # noqa: PLR0917 - the parts of one run
    planned: ProbePlan,
    place: ProbeBackend,
    objects: Objects,
    queue: str | None,
    clock: Clock,
    say: Callable[[str], None],
    pace: Pace,
) -> Seen:
    jobs, seen = place.jobs(), Seen(told=None if queue is None else {})
    request = _request(planned, _upload(planned, objects), pace)
    gives_up_at = clock.now() + timedelta(seconds=planned.max_wait_s + _AFTER_S + 600)
    final_at: datetime | None = None
    try:  # from here on there may be a job, also where the answer to its creation was lost
        _create(jobs, request, seen)
        say(f"{planned.name}: created")
        seen.name_taken = _name_taken(jobs, request)
        while clock.now() < gives_up_at:
            _look(planned, jobs, clock, seen, say)
            if queue is not None:
                _listen(planned, place.aws, queue, clock, seen, say, pace)
            last, now = seen.last, clock.now()
            if last is not None and last.status.final:
                final_at = final_at or now
                # the bill may come a moment after the end, the list and the event later still
                heard = seen.told is None or _status(last) in seen.told
                settled = last.billable_s is not None and _status(last) in seen.listed and heard
                if settled or (now - final_at).total_seconds() > pace.settle_s:
                    return seen
            elif seen.stop_sent_at is None and seen.trained and len(list(_beats(planned, objects))) >= pace.beats:
                # not before a look showed it training: files may come between a look and here, and what is told of a
                # running job and of its end would be lost
                _stop(planned, place.aws, clock, seen, say)
            clock.wait(now + timedelta(seconds=pace.poll_s))
        raise UserError(
            f"doctor: {planned.name} did not end in time; it is asked to stop: see it in the console", Exit.NOT_FINISHED
        )
    finally:
        if seen.last is None or not seen.last.status.final:
            _stop_for_certain(planned, jobs, clock, seen, say, pace)


def _stop_for_certain(  # noqa: PLR0917 - as above
    planned: ProbePlan, jobs: JobService, clock: Clock, seen: Seen, say: Callable[[str], None], pace: Pace
) -> None:
    """Several times: a call may be throttled, and a job whose creation was not answered may show itself late."""
    for left in reversed(range(_STOP_TRIES)):
        try:
            jobs.stop(planned.name)
        except JobNotFound:
            if not seen.may_exist:
                return
        except JobError as error:
            if not left:
                say(f"{planned.name}: could not be told to stop ({error}); it ends by its own limits")
        else:
            say(f"{planned.name}: asked to stop")
            return
        if left:
            clock.wait(clock.now() + timedelta(seconds=pace.poll_s))


def _upload(planned: ProbePlan, objects: Objects) -> str:
    with tempfile.TemporaryDirectory() as folder:
        script = resources.files("tuner.aws").joinpath(_SCRIPT).read_bytes()
        (Path(folder) / _SCRIPT).write_bytes(script)
        bundle = packaging.make_bundle(Path(folder), _SCRIPT, "python", [])
    return packaging.upload(bundle, objects, planned.base)


def _request(planned: ProbePlan, code_uri: str, pace: Pace) -> JobRequest:
    spec = planned.spec
    cloud = spec.sagemaker
    return JobRequest(
        name=planned.name,
        hyperparameters={"beat": str(pace.beat_s)},
        environment={},
        entrypoint=ENTRYPOINT,
        image_uri=spec.training.image_uri or "",
        channels=(Channel(name="code", uri=code_uri),),
        checkpoint_uri=f"{planned.base}checkpoints/",
        output_uri=f"{planned.base}outputs/",
        instance_type=INSTANCE_TYPE,
        instance_count=1,
        volume_gb=min(cloud.volume_gb, _VOLUME_GB),
        spot=True,
        max_run_s=_MAX_RUN_S,
        max_wait_s=planned.max_wait_s,
        role_arn=cloud.role or "",
        tags={**spec.tags, STUDY_TAG: planned.name},
        security_groups=cloud.vpc.security_groups,
        subnets=cloud.vpc.subnets or tuple(cloud.zones.values()),
        kms_key=cloud.kms_key or "",
        network_isolation=cloud.network_isolation,
        raw=cloud.request,
    )


def _raw(request: Mapping[str, Json]) -> dict[str, Json]:
    """What the study's jobs are told beside what we say: a private registry, for one, is not reached without."""
    kept = {name: value for name, value in request.items() if name not in _NOT_OURS}
    algorithm = kept.get("AlgorithmSpecification")
    if isinstance(algorithm, dict):  # the container is started by us, also where the study leaves it to its image
        ours = ("ContainerEntrypoint", "ContainerArguments")
        kept["AlgorithmSpecification"] = {name: value for name, value in algorithm.items() if name not in ours}
    return kept


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


def _look(planned: ProbePlan, jobs: JobService, clock: Clock, seen: Seen, say: Callable[[str], None]) -> None:
    """Describe, then list: a list that is behind shows an older status than the one just described."""
    with suppress(JobError):  # the next look may succeed
        last = jobs.describe(planned.name)
        if seen.last is None or seen.last.secondary != last.secondary:
            say(f"{planned.name}: {last.secondary}")
        seen.last = last
        seen.described.setdefault(_status(last), clock.now())
        if last.status is JobStatus.IN_PROGRESS and last.secondary == "Training":
            seen.trained = True
            seen.billable_mid_run |= last.billable_s is not None
            seen.training_time_mid_run |= last.training_s is not None
        since = last.created_at - timedelta(hours=1)
        for summary in jobs.list_changed(planned.name, created_after=since, modified_after=since):
            seen.listed.setdefault(_status(summary), clock.now())


def _status(seen: Observation | JobSummary) -> str:
    return f"{seen.status}/{seen.secondary}"


def _listen(  # noqa: PLR0917 - as above
    planned: ProbePlan, aws: Aws, queue: str, clock: Clock, seen: Seen, say: Callable[[str], None], pace: Pace
) -> None:
    """Take this job's events; those of others stay. What was lost with one look makes nothing certain any more."""
    if seen.told is None:
        return
    try:
        for event in hints.receive(aws.lasting("sqs"), queue, planned.name.__eq__, wait_s=pace.listen_s):
            status = f"{event.get('TrainingJobStatus')}/{event.get('SecondaryStatus')}"
            seen.told.setdefault(status, clock.now())
    except AwsError as error:
        seen.told = None
        say(f"{planned.name}: which events come is not seen: {error}")


def _stop(planned: ProbePlan, aws: Aws, clock: Clock, seen: Seen, say: Callable[[str], None]) -> None:
    """Twice: what the second one is answered is not documented."""
    stop = aws.client("sagemaker").stop_training_job
    try:
        ask(stop, TrainingJobName=planned.name)
    except AwsError as error:
        if "is in status" not in str(error):
            raise
        return  # it has ended since the last look: the next one shows how
    seen.stop_sent_at = clock.now()
    say(f"{planned.name}: asked to stop")
    try:
        ask(stop, TrainingJobName=planned.name)
        seen.stop_again = "accepted"
    except AwsError as error:
        seen.stop_again = str(error)


# --- what it showed


def _findings(planned: ProbePlan, seen: Seen, objects: Objects) -> Iterator[tuple[str, Json]]:
    last = seen.last
    assert last is not None, "a job that was watched to its end was seen"
    yield "name_taken", seen.name_taken
    yield "stop_again", seen.stop_again
    yield "billable_mid_run", seen.billable_mid_run if seen.trained else None
    yield "training_time_mid_run", seen.training_time_mid_run if seen.trained else None
    yield "list_lag_s", _list_lag_s(seen)
    yield "events", _events(seen)
    yield SYNC_FACT.removeprefix(_PREFIX), _sync_delay(planned, objects)
    yield "sigterm", _sigterm(planned, seen, objects)
    yield "statuses", [f"{row.status}: {row.message}" for row in last.history]
    yield "interruptions", sum(1 for row in last.history if row.status == "Interrupted")
    yield "times_s", {"training": last.training_s, "billable": last.billable_s, "up": _up_s(last)}
    rate = planned.rate.microusd_per_hour
    yield "cost_usd", None if last.billable_s is None else cost_microusd(last.billable_s, 1, rate) / MICROUSD


def _fault(planned: ProbePlan, seen: Seen, *, saved: bool) -> str | None:
    """Why the way that a study's jobs go is not open, in one line with what to look at; None where it is."""
    last = seen.last
    assert last is not None, "as above"
    options = cli_options(planned.spec.region, planned.spec.sagemaker.profile)
    log = f"aws logs tail {LOG_GROUP} --since 1h --log-stream-name-prefix {planned.name}/ {options}"
    if last.status is JobStatus.FAILED:
        said = " ".join(last.failure.split()) or "SageMaker gives no reason"
        return f"{planned.name} failed: {said}; {_ADVICE[classify_failure(last.failure)]} (its log: {log})"
    if not any(row.status == "Training" for row in last.history):
        return (
            f"{planned.name} never trained: it ended as {last.secondary}; if it waited for capacity, run it again later"
            f" or look at the quota of {INSTANCE_TYPE} on spot; else see what stopped it"
        )
    if not saved:
        return (
            f"{planned.name} trained, and nothing that it saved came to {planned.base}checkpoints/: no trial could "
            f"resume; look at the role's right to write there, and at its log: {log}"
        )
    return None


_ADVICE = {
    AttemptEnd.CAPACITY: "no instance was to be had: run it again later",
    AttemptEnd.SERVICE_FAULT: "run it again; should it stay so, the image does not start",
    AttemptEnd.SCRIPT_ERROR: "look at the image (it needs Python 3.8 or newer), and at what its role may do",
}


def _list_lag_s(seen: Seen) -> float | None:
    """How much later than Describe a list showed a status, at most; as fine as the looks were apart."""
    both = seen.described.keys() & seen.listed.keys()
    lags = [(seen.listed[status] - seen.described[status]).total_seconds() for status in both]
    return max([0.0, *lags]) if lags else None


def _events(seen: Seen) -> Json:
    """How much later than Describe an event told of each status; None where Describe never showed it.

    `missing` are those that Describe showed and no event told of.
    """
    if seen.told is None:
        return None
    shown = seen.described
    return {
        "after_s": {
            status: round((at - shown[status]).total_seconds(), 1) if status in shown else None
            for status, at in seen.told.items()
        },
        "missing": [status for status in shown if status not in seen.told],
    }


def _beats(planned: ProbePlan, objects: Objects) -> Iterator[ObjectInfo]:
    for info in objects.list(f"{planned.base}checkpoints/beat-"):
        if info.uri.endswith(".json"):
            yield info


def _sync_delay(planned: ProbePlan, objects: Objects) -> Json:
    """From a file's writing, by the instance's clock, to its being in S3, by S3's."""
    # S3 gives whole seconds, and two clocks differ: never below nothing
    delays = [max(0.0, info.modified.timestamp() - _read(objects, info.uri)["at"]) for info in _beats(planned, objects)]
    if not delays:
        return None
    return {"files": len(delays), "median": round(statistics.median(delays), 1), "max": round(max(delays), 1)}


def _sigterm(planned: ProbePlan, seen: Seen, objects: Objects) -> Json:
    """Whether the script was told, and which of its last words arrived: by the checkpoint sync, in the model."""
    if seen.stop_sent_at is None or not seen.trained:
        return None
    synced = [_read(objects, info.uri) for info in objects.list(f"{planned.base}checkpoints/sigterm-")]
    packed = list(_packed(planned, objects))
    words = [*synced, *packed]
    return {
        "received": bool(words),
        "after_s": round(words[-1]["at"] - seen.stop_sent_at.timestamp(), 1) if words else None,
        "synced": bool(synced),
        "in_model": bool(packed),
    }


def _packed(planned: ProbePlan, objects: Objects) -> Iterator[dict[str, float]]:
    """The same file where it went into the model: its archive, which is read in memory, or beside others."""
    for info in objects.list(f"{planned.base}outputs/"):
        if "/sigterm-" in info.uri:  # of a study that wants its model without compression
            yield _read(objects, info.uri)
        if not info.uri.endswith("/model.tar.gz"):
            continue
        with suppress(tarfile.TarError, EOFError), tarfile.open(fileobj=io.BytesIO(objects.read(info.uri))) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member) if "sigterm-" in member.name else None
                if content is not None:
                    yield json.loads(content.read())


def _read(objects: Objects, uri: str) -> dict[str, float]:
    read: dict[str, float] = json.loads(objects.read(uri))
    return read


def _up_s(last: Observation) -> float:
    """Seconds in which an instance was up, by the history."""
    up = [row for row in last.history if row.status in ("Downloading", "Training", "Uploading", "Stopping")]
    return sum(((row.ended_at or last.modified_at) - row.started_at).total_seconds() for row in up)


def _rates(aws: Aws) -> Json:
    """What Service Quotas says of calls per second; None where it does not."""
    found, _ = preflight.read_quotas(aws, _RATES)
    return {_RATES[name]: value for name, value in sorted(found.items())} or None
