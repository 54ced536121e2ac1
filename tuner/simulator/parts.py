"""What a simulated cloud is made of: scripts, settings, faults, jobs, and what lies under their prefixes.

Rules: what a test chooses is frozen; what happens to a job or a prefix is changed by the cloud alone, and may be read
by checkers.
"""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from tuner.core.jobs import HistoryRow, JobError, JobRequest, JobStatus, JobSummary, ServiceUnavailable, Throttled
from tuner.core.records import MetricPoint, ProgressReport, RunRecord

Curve: TypeAlias = Callable[[Mapping[str, str], int], float]
_DOWN = frozenset(("Starting", "Pending", "Interrupted", "Restarting"))  # no instance of the job's is up

Outage: TypeAlias = tuple[float, float]  # start and end, in seconds since the simulation began


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a job runs. The defaults are a good script; each field is a way to differ."""

    epochs: int = 10
    step_s: float = 30.0
    curve: Curve | None = None  # None: the cloud's own; may return NaN
    metric: str | None = "val_accuracy"  # None: it reports nothing
    numbered: bool = True  # False: its metric comes without a step
    checkpoint_every: int = 1  # steps; 0: it never saves
    save_s: float = 0.0  # between the metric of a step and the step's checkpoint being complete
    manifests: bool = True  # False: it saves files of its own making
    resumes: bool = True  # False: it starts over, whatever it finds
    behind: int = 0  # how many steps before the newest checkpoint it takes up its work
    torn: bool = False  # an interruption leaves its newest checkpoint incomplete
    sync_stops_after: int | None = None  # nothing of later steps reaches the prefix, and nobody says so
    failure: str | None = None  # a FailureReason, with its prefix
    fails_at: int | None = None  # the step at which it fails; None: at the start, before any instance is up
    hangs_after: int | None = None  # the step after which nothing happens any more
    ignores_sigterm: bool = False  # trains on until the grace is over
    start_s: float = 60.0  # mean; drawn between half and one and a half of it
    download_s: float = 10.0  # 0: no Downloading row
    upload_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """How this cloud behaves, undocumented choices included."""

    saving: float = 0.65  # of spot against on-demand
    stop_grace_s: float = 120.0
    quota: int | None = None  # instances at once, for each type, spot and on-demand apart
    quotas: Mapping[str, int] = field(default_factory=dict)  # of types that have one of their own
    max_run_per_run: bool = False  # True: an interruption sets the count for MaxRuntime back to zero
    starting_after_interruption: bool = True  # False: Interrupted is followed by Downloading


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFaults:
    """Seeded misfortune at the port: probabilities per call."""

    refused: float = 0.0  # the call has no effect and raises one of `errors`
    lost: float = 0.0  # create and stop take effect, and raise ServiceUnavailable
    lagging: float = 0.0  # a list shows what was `lag_s` ago
    lag_s: float = 60.0
    repeated: float = 0.0  # a list gives each job twice
    errors: tuple[type[JobError], ...] = (Throttled, ServiceUnavailable)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedBill:
    """What a job costs; None where no instance ever started."""

    training_s: int | None
    billable_s: int | None
    instance_count: int
    instance_type: str


@dataclass(slots=True)
class Prefix:
    """What lies under a checkpoint URI; all of it survives interruptions."""

    points: list[MetricPoint] = field(default_factory=list)
    records: list[RunRecord] = field(default_factory=list)
    saved: dict[int, datetime] = field(default_factory=dict)  # complete checkpoints by step, in the order of saving
    manifests: bool = True
    torn: int | None = None  # the step of a checkpoint that is not whole any more

    @property
    def newest(self) -> tuple[int, datetime] | None:
        """As a reader of manifests sees it: the highest step, not the latest save."""
        return max(self.saved.items(), default=None)

    def save(self, step: int, at: datetime) -> None:
        self.saved.pop(step, None)
        self.saved[step] = at


@dataclass(slots=True, kw_only=True)
class SimulatedJob:
    """A job and its instances. For checkers to read; the engine sees only what the port shows."""

    request: JobRequest
    script: Script
    arn: str
    created_at: datetime
    status: JobStatus = JobStatus.IN_PROGRESS
    history: list[HistoryRow] = field(default_factory=list)
    versions: list[JobSummary] = field(default_factory=list)  # as listed, oldest first
    failure: str = ""
    up_since: float | None = None
    up: list[tuple[float, float]] = field(default_factory=list)  # whole times that instances were up
    step: int = 0
    runs: int = 0
    run: str = ""
    end: str = "Completed"  # the secondary status it is bound for
    life: int = 0  # events of an earlier life do not happen

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def secondary(self) -> str:
        return self.history[-1].status

    @property
    def training_s(self) -> int | None:
        """From the history: all times between a row that needs an instance and the next that has none."""
        total, up = timedelta(0), False
        for row in self.history:
            up = row.status not in _DOWN and (up or row.status in ("Downloading", "Training"))
            if up and row.ended_at is not None:
                total += row.ended_at - row.started_at
        return max(1, round(total / timedelta(seconds=1))) if self.up else None  # SageMaker knows no 0 here

    @property
    def model_uri(self) -> str | None:
        """A job that completed or was stopped uploads what there is; a failed one nothing."""
        if not self.up or self.status not in (JobStatus.COMPLETED, JobStatus.STOPPED):
            return None
        return f"{self.request.output_uri.rstrip('/')}/{self.name}/output/model.tar.gz"

    def billable_s(self, training_s: int | None, saving: float) -> int | None:
        if training_s is None or not self.request.spot:
            return training_s
        return max(1, round(training_s * (1 - saving)))

    def bill(self, saving: float) -> SimulatedBill:
        """From what the instances were up, not from the history."""
        micros = sum(round(end * 1e6) - round(start * 1e6) for start, end in self.up)
        training_s = max(1, round(micros / 1e6)) if self.up else None
        return SimulatedBill(
            training_s=training_s,
            billable_s=self.billable_s(training_s, saving),
            instance_count=self.request.instance_count,
            instance_type=self.request.instance_type,
        )


class Reader:
    """Reads prefixes incrementally, each from its own position."""

    def __init__(self, prefixes: Mapping[str, Prefix], batch: int | None, before: Callable[[], None]) -> None:
        self._prefixes, self._batch, self._before = prefixes, batch, before
        self._read: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))

    def expect(self, prefixes: Iterable[str]) -> None:
        """Nothing here takes time."""

    def read(self, prefix: str) -> ProgressReport:
        """What is new since the last read; raises what was planned for it."""
        self._before()
        lies = self._prefixes.get(prefix) or Prefix()
        points, records = self._read[prefix]
        end = len(lies.points) if self._batch is None else min(len(lies.points), points + self._batch)
        self._read[prefix] = (end, len(lies.records))
        newest = lies.newest if lies.manifests else None
        return ProgressReport(
            points=tuple(lies.points[points:end]),
            records=tuple(lies.records[records:]),
            checkpoint_step=newest[0] if newest else None,
            checkpoint_at=newest[1] if newest else max(lies.saved.values(), default=None),
            more=end < len(lies.points),
        )

    def forget(self, prefix: str) -> None:
        """Its trial has ended."""
        self._read.pop(prefix, None)


def smooth_curve(seed: int) -> Curve:
    """Values that rise towards a ceiling between 0.5 and 1, which the hyperparameters and the seed decide."""

    def value(hyperparameters: Mapping[str, str], step: int) -> float:
        text = f"{seed}:{sorted(hyperparameters.items())}"
        ceiling = 0.5 + int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**33
        return ceiling * (1 - math.exp(-step / 4))

    return value


def exponential_outages(seed: int, *, mean_s: float, down_s: float) -> Iterator[Outage]:
    """Outages without end, `down_s` long, at exponential gaps of at least a quarter of the mean."""
    draws = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    start = 0.0
    while True:
        start += max(0.25 * mean_s, draws.expovariate(1 / mean_s))
        yield start, start + down_s
        start += down_s
