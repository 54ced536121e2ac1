"""The records that all rooms share.

Rules: records are frozen and slotted; they change by `dataclasses.replace`, never in place. No dict with known keys
crosses a module boundary; a `Mapping` is used only where the user chooses the keys (parameters, attributes, tags).
Times are aware and in UTC. Money is in integer micro-dollars (`_microusd`), durations in seconds (`_s`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import TypeAlias

ParamValue: TypeAlias = str | int | float | bool | None
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# The step under which a metric without a step is stored: its last line wins.
NO_STEP = -1
# Attribute of a trial that repeats a failed one: whose parameters and checkpoints it began with.
RETRY_OF = "tuner:retry_of"

# Attribute of a trial that was begun before changes were accepted: the study file as it was then (see `workload`).
BEGUN_WITH = "tuner:begun_with"
# Attribute of a study: the keys that `tuner set` changed, with what its file said of them then.
SET_LIVE = "tuner:set_live"
# Attribute of a study: why nothing new is begun until somebody has mended something and resumed.
HALTED = "tuner:halted"
# Attribute of a study: by verb, the event of a refused request that no later request of the verb replaced.
REFUSED_REQUESTS = "tuner:refused_requests"


class StudyState(StrEnum):
    """What a study is doing. `stopped`, `out_of_budget` and `past_deadline` are rests, which `resume` or `set` ends."""

    RUNNING = "running"
    DRAINING = "draining"  # jobs in flight are awaited, nothing new is submitted
    STOPPED = "stopped"
    OUT_OF_BUDGET = "out_of_budget"
    PAST_DEADLINE = "past_deadline"
    FINISHED = "finished"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (StudyState.FINISHED, StudyState.CANCELLED)

    @property
    def active(self) -> bool:
        """An engine is expected to be at work."""
        return self in (StudyState.RUNNING, StudyState.DRAINING)


class Intent(StrEnum):
    """What the user last asked of a study."""

    RUN = "run"
    DRAIN = "drain"  # no new jobs, those in flight finish
    STOP = "stop"  # jobs in flight are stopped at their next checkpoint, resumable
    STOP_NOW = "stop_now"
    CANCEL = "cancel"


class TrialState(StrEnum):
    PROPOSED = "proposed"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (TrialState.SUCCEEDED, TrialState.PRUNED, TrialState.FAILED, TrialState.CANCELLED)


class AttemptState(StrEnum):
    SUBMITTING = "submitting"  # the intent is recorded; whether the job exists is not known yet
    WAITING = "waiting"
    TRAINING = "training"
    INTERRUPTED = "interrupted"
    STOPPING = "stopping"  # StopTrainingJob was decided, or the service is stopping it
    ENDED = "ended"


class StopReason(StrEnum):
    """Why an attempt should stop."""

    PRUNE = "prune"
    PAUSE = "pause"
    MOVE = "move"
    LIMIT = "limit"  # budget or deadline of the study
    STALL = "stall"
    TRIAL_BUDGET = "trial_budget"
    NO_PROGRESS = "no_progress"
    USER = "user"
    CANCEL = "cancel"


class AttemptEnd(StrEnum):
    """How an attempt ended, one member for each decision that follows."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    MAX_WAIT = "max_wait"
    MAX_RUN = "max_run"
    CAPACITY = "capacity"
    SERVICE_FAULT = "service_fault"
    SCRIPT_ERROR = "script_error"
    REJECTED = "rejected"
    FOREIGN = "foreign"  # the job name was taken by a job that is not ours: nothing was submitted


class RunEnd(StrEnum):
    INTERRUPTED = "interrupted"
    RESTARTED = "restarted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that drives a study. `started` distinguishes it from a later one with the same pid."""

    host: str
    boot_id: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write to a study; `fence` grows with each new holder, and every write is checked against it."""

    study_id: int
    fence: int
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One sweep as recorded."""

    id: int
    name: str
    key: str  # drawn once; prefixes every job name and checkpoint prefix
    owner: str
    state: StudyState
    version: int
    spec: str  # the parsed study file as JSON, with live changes applied
    backend: str  # local | sagemaker
    bundle_uri: str  # where the code of new trials lies, ends in "/"
    local_dir: str | None  # state directory of the local service
    intent: Intent
    intent_at: datetime
    created_at: datetime
    attrs: Mapping[str, Json] = field(default_factory=dict)  # what the sampler and the engine remember, JSON only
    warnings: tuple[str, ...] = ()
    exhausted: bool = False  # the sampler has no more points to propose
    # written by the lease alone, outside `version`
    fence: int = 0
    holder: Holder | None = None
    lease_expires_at: datetime | None = None
    last_tick_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the sampler proposed; keeps its number for life."""

    number: int
    state: TrialState
    version: int
    params: Mapping[str, ParamValue]
    distributions: str  # JSON, written and read by the search room
    attrs: Mapping[str, Json]  # the sampler's and pruner's attributes of this trial
    prefix: str  # checkpoint prefix URI, ends in "/"
    bundle_uri: str
    asked_seq: int  # event that proposed it
    created_at: datetime
    told_seq: int | None = None  # event that ended it
    finished_at: datetime | None = None
    reason: str | None = None
    values: tuple[float, ...] | None = None
    last_step: int | None = None  # highest step at which the objective was reported
    last_value: float | None = None
    judged_step: int | None = None  # highest step the pruner was asked about
    pruned_at_step: int | None = None  # the verdict, stored once
    attempts: int = 0  # attempt numbers used up
    faults: int = 0  # attempts that count to `max_faults`
    due_at: datetime | None = None  # while backing off; None: waits for `resume`, without a deadline

    @property
    def retry_of(self) -> int | None:
        """The failed trial that this one repeats; such trials do not count to the study's total."""
        number = self.attrs.get(RETRY_OF)
        return number if isinstance(number, int) else None


@dataclass(frozen=True, slots=True)
class Pool:
    """A source of capacity: an instance type on spot or on demand in the study's region, or in a zone of it.

    SageMaker names no zone. There is one only if the study file maps zones to subnets.
    """

    instance_type: str
    spot: bool
    zone: str | None = None

    def __str__(self) -> str:
        return " ".join((self.instance_type, "spot" if self.spot else "on-demand", *([self.zone] if self.zone else ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTotals:
    """Sums over the attempts in a pool."""

    attempts: int = 0  # that had a job
    live: int = 0
    interruptions: int = 0
    up_s: float = 0.0
    wait_s: float = 0.0  # for capacity and for the preparation of training

    def __add__(self, other: "PoolTotals") -> "PoolTotals":
        return PoolTotals(
            attempts=self.attempts + other.attempts,
            live=self.live + other.live,
            interruptions=self.interruptions + other.interruptions,
            up_s=self.up_s + other.up_s,
            wait_s=self.wait_s + other.wait_s,
        )

    @property
    def waits(self) -> int:
        """Times that a job waited for capacity."""
        return self.attempts + self.interruptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One CreateTrainingJob. Its row exists before the job does."""

    trial: int
    number: int
    state: AttemptState
    version: int
    job_name: str
    digest: str  # of hyperparameters, prefix and bundle: distinguishes our job from a foreign one of the same name
    instance_type: str  # this and the next fields may change while no job exists, if a quota refuses the job
    instance_count: int
    spot: bool
    rate_microusd_per_h: int
    max_run_s: int
    max_wait_s: int | None
    reserved_microusd: int
    created_at: datetime  # of the intent
    arn: str | None = None
    submitted_at: datetime | None = None  # creation time of the job, once it is known to exist
    refusals: int = 0  # how often submission was refused or its outcome stayed unknown
    next_try_at: datetime | None = None
    history_rows: int = 0  # rows of the job's history that were applied
    observed_at: datetime | None = None
    interruptions: int = 0
    restarts: int = 0
    stop_reason: StopReason | None = None
    stop_wanted_at: datetime | None = None
    stop_by: datetime | None = None  # a stop that waits for a checkpoint is sent at this time at the latest
    stop_sent_at: datetime | None = None
    end: AttemptEnd | None = None
    reason: str | None = None
    ended_at: datetime | None = None
    run_s: float = 0.0  # seconds that count against max_run: from a run's first Downloading or Training row to its end
    training_s: int | None = None  # TrainingTimeInSeconds, final
    billable_s: int | None = None  # BillableTimeInSeconds, final
    startup_s: float = 0.0  # waiting for capacity, preparing and downloading, also after an interruption
    upload_s: float = 0.0
    estimated_microusd: int = 0  # from the history, while it runs
    spend_microusd: int | None = None  # final
    on_demand_microusd: int | None = None  # final
    model_uri: str | None = None
    zone: str | None = None  # only if the study file maps zones to subnets

    @property
    def live(self) -> bool:
        return self.state is not AttemptState.ENDED

    @property
    def pool(self) -> Pool:
        return Pool(self.instance_type, self.spot, self.zone)


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of training in a job's history."""

    started_at: datetime
    ended_at: datetime | None
    end: RunEnd | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Training between two interruptions. Unknown is None, never 0."""

    trial: int
    attempt: int
    number: int  # within the attempt, from 1, by the history's Training rows
    started_at: datetime
    ended_at: datetime | None = None
    end: RunEnd | None = None
    run_id: str | None = None  # drawn by the bootstrap, if there is one
    had_checkpoint: bool | None = None  # a checkpoint lay under the prefix when it started
    resume_step: int | None = None  # the step of the complete checkpoint it found
    first_step: int | None = None
    last_step: int | None = None
    resumed_from_step: int | None = None  # at best; proven by a first step beyond the trial's first
    restarted_from_zero: bool | None = None
    lost_work_s: float | None = None  # training of this run after the checkpoint that its successor started from


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A metric of a trial at a step; for a repeated step the later run wins."""

    trial: int
    step: int  # NO_STEP if the script reports none
    name: str
    value: float  # may be NaN or infinite
    attempt: int
    run_id: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """A metric as read from a trial's prefix."""

    attempt: int
    run: str
    host: str
    step: int | None
    at: datetime
    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the bootstrap found under the prefix when it started a script, by its own record."""

    attempt: int
    run: str
    host: str
    started_at: datetime
    resume_step: int | None  # of the newest complete checkpoint; None without manifests
    resume_saved_at: datetime | None
    own_files: int  # files of the script's own
    newest_step: int | None = None  # of the newest step's folder, complete or torn


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressReport:
    """What is new under a trial's prefix since the last look, and its newest checkpoint."""

    points: tuple[MetricPoint, ...] = ()  # in the order written, earlier runs first
    records: tuple[RunRecord, ...] = ()
    checkpoint_step: int | None = None
    checkpoint_at: datetime | None = None  # newest complete checkpoint, or newest file of the script's own
    more: bool = False  # there was more than one look reads
    whole_through: int | None = None  # the last attempt that was read completely; None: all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. `seq` counts within the study, without gaps."""

    seq: int
    kind: str
    recorded_at: datetime  # ours
    happened_at: datetime  # the source's
    trial: int | None = None
    attempt: int | None = None
    before: str | None = None  # state, for a transition
    after: str | None = None
    details: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user requested from another process; the engine applies it at its next tick."""

    id: int
    verb: str  # set | stop | cancel
    values: Mapping[str, Json]
    who: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Everything that one step of the engine writes, all of it in one transaction."""

    study: tuple[Study, Study] | None = None  # before, after
    new_trials: tuple[Trial, ...] = ()
    trials: tuple[tuple[Trial, Trial], ...] = ()  # before, after; the store checks state and version of before
    new_attempts: tuple[Attempt, ...] = ()
    attempts: tuple[tuple[Attempt, Attempt], ...] = ()
    runs: tuple[Run, ...] = ()  # inserted, or replaced by (trial, attempt, number)
    points: tuple[Point, ...] = ()  # inserted, or replaced by (trial, step, name)
    events: tuple[Event, ...] = ()
    requests: tuple[Request, ...] = ()  # applied


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A study in figures, summed by the database."""

    trials: Mapping[TrialState, int]
    attempts: int
    live_attempts: int
    interruptions: int
    runs: int
    resumed_runs: int
    resumed_from_older: int  # of these, runs that started from an older checkpoint than the newest
    restarted_from_zero: int
    unproven_runs: int  # ended; a checkpoint lay there, and no run of their trial is known to have reported a step
    never_checkpointed: int  # ended runs that left nothing to resume from
    spend_microusd: int
    on_demand_microusd: int
    estimated_microusd: int
    reserved_microusd: int
    lost_work_s: float | None  # as far as known; None if runs were interrupted and nothing is known of any of them
    lost_work_unknown_runs: int  # interrupted runs whose lost work is not known, or not yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A fact about an account in a region. `scope` is "account/region", `source` names the check that found it."""

    scope: str
    name: str
    value: Json
    learned_at: datetime
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPrice:
    """An on-demand price as AWS publishes it. `as_of` is the source's own date."""

    region: str
    instance_type: str
    usd_per_hour: Decimal
    as_of: str
    fetched_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRate:
    """How many calls of one operation an account may make: `per_s` in the long run, `burst` at once."""

    per_s: float
    burst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What an engine takes from a bucket of calls: `wanted`, or fewer."""

    wanted: int
    idle: int = 0  # further ones, only while the bucket is more than half full
    at_least: int = 0  # take none if fewer are there
    spare: int = 0  # this many stay in the bucket
    engines: int = 1  # that share the bucket: one takes at most its part of what is there
    back: int = 0  # unused calls of an earlier draw, given back
