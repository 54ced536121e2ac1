"""What the engine keeps in memory: the study's totals, and its unfinished trials with everything decisions need.

Rules: it is a copy of rows and of what lies under the prefixes, and may be thrown away at any time. Its size follows
what is in flight, not what is recorded. Nothing here writes, and nothing here decides.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from tuner import decide
from tuner.decide import Policy
from tuner.model import (
    NO_STEP,
    Attempt,
    AttemptState,
    MetricPoint,
    Point,
    ProgressReport,
    Run,
    RunRecord,
    Study,
    Trial,
    TrialState,
)
from tuner.proof import Steps
from tuner.spec import StudySpec

if TYPE_CHECKING:
    from tuner.proposals import Proposer  # Optuna is slow to import, and `status` passes here


@dataclass
class Work:
    """A trial that has not ended, with everything that decisions about it need."""

    trial: Trial
    attempts: list[Attempt] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    records: dict[tuple[int, str], RunRecord] = field(default_factory=dict)  # by attempt, run id
    steps: dict[tuple[int, str], Steps] = field(default_factory=dict)
    reported_at: dict[int, datetime] = field(default_factory=dict)  # by step
    heard_at: datetime | None = None  # the latest of these
    latest: dict[tuple[str, int], Point] = field(default_factory=dict)  # by metric, step
    host: str | None = None  # whose metrics count: the first
    checkpoint_step: int | None = None
    checkpoint_at: datetime | None = None
    unread: bool = True  # something may lie under the prefix that was not read

    @property
    def attempt(self) -> Attempt | None:
        """The live attempt."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].live else None

    @property
    def ended_attempt(self) -> Attempt | None:
        """The last attempt, once it has ended."""
        return self.attempts[-1] if self.attempts and not self.attempts[-1].live else None

    def value(self, metric: str) -> float | None:
        """The metric at its highest step."""
        steps = [step for name, step in self.latest if name == metric]
        return self.latest[metric, max(steps)].value if steps else None

    def take(self, report: ProgressReport) -> list[Point]:
        """Remember what was read; returns the points that are new or replace older ones."""
        for record in report.records:
            self.host = min(self.host or record.host, record.host)
            if record.host == self.host:
                self.records[record.attempt, record.run] = record
        # as it is now: a checkpoint may have gone, or have lost a file
        self.checkpoint_step, self.checkpoint_at = report.checkpoint_step, report.checkpoint_at
        fresh: dict[tuple[str, int], Point] = {}
        for raw in report.points:
            self.host = min(self.host or raw.host, raw.host)
            point = self._take_point(raw)
            if point is not None:
                fresh[point.name, point.step] = point
        return sorted(fresh.values(), key=lambda point: point.step)

    def hear(self, step: int, at: datetime) -> None:
        """A step was reported."""
        self.reported_at[step] = at
        self.heard_at = max(self.heard_at or at, at)

    def _take_point(self, raw: MetricPoint) -> Point | None:
        if raw.host != self.host:
            return None
        step = NO_STEP if raw.step is None else raw.step
        if raw.step is not None:
            seen = self.steps.get((raw.attempt, raw.run))
            # the first in order of reporting, not the lowest: a run starts where it starts
            self.steps[raw.attempt, raw.run] = Steps(seen.first, max(seen.last, step)) if seen else Steps(step, step)
        known = self.latest.get((raw.name, step))
        if known is not None and (raw.attempt, raw.run) < (known.attempt, known.run_id):
            return None
        point = Point(
            trial=self.trial.number,
            step=step,
            name=raw.name,
            value=raw.value,
            attempt=raw.attempt,
            run_id=raw.run,
            at=raw.at,
        )
        self.latest[raw.name, step] = point
        self.hear(step, raw.at)
        return None if known == point else point


@dataclass
class Memory:
    """One study, as its engine knows it."""

    spec: StudySpec
    policy: Policy
    proposer: "Proposer"
    last_seq: int
    trial_count: int  # of all; a new one gets this number
    spent_microusd: int
    on_demand_microusd: int
    live: dict[int, Work] = field(default_factory=dict)
    seen_modified: dict[str, datetime] = field(default_factory=dict)  # by job: what was described last
    listed_at: datetime | None = None
    last_recorded_at: datetime | None = None
    retried: int = 0  # trials that repeat failed ones, outside the total

    @property
    def in_flight(self) -> int:
        """Live attempts."""
        return sum(work.attempt is not None for work in self.live.values())

    @property
    def concluding(self) -> bool:
        """An attempt has ended whose meaning is not written yet."""
        return any(
            work.trial.state is TrialState.RUNNING and work.ended_attempt is not None for work in self.live.values()
        )

    def waiting(self) -> list[Work]:
        """Unfinished trials without a job, in the order in which they get one."""
        # a proposal gets its job in the commit that records it, but for one that repeats a failed trial
        states = (TrialState.BACKING_OFF, TrialState.PROPOSED)
        waiting = [work for work in self.live.values() if work.trial.state in states]
        return sorted(waiting, key=lambda work: work.trial.number)

    def wants_more(self, study: Study) -> bool:
        """Whether the total of trials is not proposed yet."""
        return self.trial_count - self.retried < self.policy.trials and not study.exhausted

    def past_deadline(self, now: datetime) -> bool:
        return self.policy.deadline_at is not None and now >= self.policy.deadline_at

    @property
    def billed_ratio(self) -> float:
        """Billed over training time as this study has learned it; 1 before anything ended."""
        return self.spent_microusd / self.on_demand_microusd if self.on_demand_microusd else 1.0

    # --- budget

    def next_allowance(self, work: Work | None) -> int:
        """What the next attempt of this trial, or the first of a new one, would reserve."""
        attempts = work.attempts if work is not None else []
        left_s = max(0, decide.max_run_left_s(attempts, self.policy))
        rate = self.policy.rates_microusd_per_h[decide.instance_choice(attempts, self.policy)]
        return decide.allowance_microusd(left_s, rate, self.policy)

    @property
    def reserved_in_flight_microusd(self) -> int:
        return sum(work.attempt.reserved_microusd for work in self.live.values() if work.attempt is not None)

    @property
    def reserved_microusd(self) -> int:
        """What attempts in flight, and those that unfinished trials are due, may still bill."""
        return self.reserved_in_flight_microusd + sum(self.next_allowance(work) for work in self.waiting())

    def affordable(self, work: Work | None) -> bool:
        """Whether the next attempt of this trial, or of a new one, fits the budget beside everything reserved.

        A new trial stands behind all unfinished ones; an unfinished one only behind what is in flight.
        """
        if self.policy.budget_microusd is None:
            return True
        others = self.reserved_microusd if work is None else self.reserved_in_flight_microusd
        return self.spent_microusd + others + self.next_allowance(work) <= self.policy.budget_microusd


def is_training(attempt: Attempt) -> bool:
    """Whether the attempt may be writing metrics and checkpoints."""
    return attempt.state in (AttemptState.TRAINING, AttemptState.STOPPING)
