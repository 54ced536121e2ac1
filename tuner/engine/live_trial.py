"""A trial that has not ended, as the engine keeps it in memory.

Rules: it is a copy of rows and of the files under the trial's prefix, and may be thrown away at any time. It follows
what was read; rules about it stand in `core.policy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tuner.core.policy import proof
from tuner.core.policy.history import Presence
from tuner.core.policy.proof import Steps
from tuner.core.records import (
    NO_STEP,
    Attempt,
    AttemptState,
    MetricPoint,
    Point,
    ProgressReport,
    Run,
    RunRecord,
    StopReason,
    Trial,
)


@dataclass(frozen=True, slots=True)
class Silence:
    """For how long a trial showed nothing new, by the engine's own clock; see `liveness.note_silence`."""

    looked_at: datetime | None = None  # when everything under the prefix was last read
    sign: tuple[object, ...] = ()  # what was seen then; a different one is a sign of life
    lasted_s: float = 0.0


@dataclass
class LiveTrial:
    """A trial that has not ended, with everything that rules about it need."""

    record: Trial
    attempts: list[Attempt] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    records: dict[tuple[int, str], RunRecord] = field(default_factory=dict)  # by attempt, run id
    steps: dict[tuple[int, str], Steps] = field(default_factory=dict)
    reported_at: datetime | None = None  # when a step was last reported
    latest: dict[tuple[str, int], Point] = field(default_factory=dict)  # by metric, step
    host: str | None = None  # whose metrics count: the first
    checkpoint_step: int | None = None
    checkpoint_at: datetime | None = None
    unread: bool = True  # something under the prefix may not be read yet
    silence: Silence = Silence()
    more: bool = False  # the last read was cut short, and the next one goes on from there
    presence: Presence | None = None  # of the last attempt's job, when it was last described
    final_metrics: Mapping[str, float] = field(default_factory=dict)  # of the last attempt's job, as the service read

    @property
    def attempt(self) -> Attempt | None:
        """The live attempt."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].live else None

    @property
    def ended_attempt(self) -> Attempt | None:
        """The last attempt, once it has ended."""
        return self.attempts[-1] if self.attempts and not self.attempts[-1].live else None

    @property
    def waits_since(self) -> datetime | None:
        """Since when the live attempt's job has no instances; None if it has some, or was not described yet."""
        if self.attempt is None or self.attempt.arn is None or self.presence is None or self.presence.up:
            return None
        return self.presence.since

    @property
    def moved(self) -> bool:
        """Whether the trial has left a pool, and is in no other yet."""
        last = self.ended_attempt
        return last is not None and last.stop_reason is StopReason.MOVE

    @property
    def runs_out_at(self) -> datetime | None:
        """When the live attempt's job has used up its `max_run` if its instances stay up; None if they are not up."""
        attempt = self.attempt
        if attempt is None or attempt.observed_at is None or self.presence is None or not self.presence.up:
            return None
        return attempt.observed_at + timedelta(seconds=attempt.max_run_s - attempt.run_s)

    @property
    def no_progress(self) -> bool:
        """Whether whole runs of the trial trained without a newer checkpoint, as far as everything was read."""
        if self.unread:
            return False
        return proof.no_progress(self.runs, self.attempts, self.checkpoint_at)

    def value(self, metric: str) -> float | None:
        """The metric at its highest step."""
        steps = [step for name, step in self.latest if name == metric]
        return self.latest[metric, max(steps)].value if steps else None

    def take(self, report: ProgressReport) -> list[Point]:
        """Note what was read; returns the points that are new or replace older ones."""
        for record in report.records:
            self.host = min(self.host or record.host, record.host)
            if record.host == self.host:
                self.records[record.attempt, record.run] = record
        # as it is now: a checkpoint may be deleted, or have lost a file
        self.checkpoint_step, self.checkpoint_at = report.checkpoint_step, report.checkpoint_at
        fresh: dict[tuple[str, int], Point] = {}
        for raw in report.points:
            self.host = min(self.host or raw.host, raw.host)
            point = self._take_point(raw)
            if point is not None:
                fresh[point.name, point.step] = point
        return sorted(fresh.values(), key=lambda point: point.step)

    def note_report(self, at: datetime) -> None:
        """Note that a step was reported."""
        self.reported_at = max(self.reported_at or at, at)

    def _take_point(self, raw: MetricPoint) -> Point | None:
        if raw.host != self.host:
            return None
        step = NO_STEP if raw.step is None else raw.step
        if raw.step is not None:
            seen = self.steps.get((raw.attempt, raw.run))
            # the first that was reported, not the lowest
            seen = Steps(seen.first, max(seen.last, step), seen.at) if seen else Steps(step, step)
            seen.at.setdefault(step, raw.at)
            self.steps[raw.attempt, raw.run] = seen
        known = self.latest.get((raw.name, step))
        if known is not None:
            # older stores have another name for it, which would win over what replaces it
            run_id = "-cloudwatch" if known.run_id == "cloudwatch" else known.run_id
            if (raw.attempt, raw.run) < (known.attempt, run_id):
                return None
        point = Point(
            trial=self.record.number,
            step=step,
            name=raw.name,
            value=raw.value,
            attempt=raw.attempt,
            run_id=raw.run,
            at=raw.at,
        )
        self.latest[raw.name, step] = point
        self.note_report(raw.at)
        return None if known == point else point


def is_training(attempt: Attempt) -> bool:
    """Whether the attempt may be writing metrics and checkpoints now."""
    return attempt.state in (AttemptState.TRAINING, AttemptState.STOPPING)
