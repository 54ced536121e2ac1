"""A study that its engine drives, as kept in memory: its totals and its unfinished trials.

Rules: it is a copy of rows, and may be thrown away at any time. Its size follows what is in flight, not what is
recorded. Nothing here writes. Questions of budget and placement are answered by `core.policy`, given the figures that
are kept here.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from tuner.core.commands import Message
from tuner.core.jobs import CredentialsRefused, SecretMissing
from tuner.core.policy import budget, placement, stopping
from tuner.core.policy.history import Presence
from tuner.core.policy.placement import CapacitySnapshot, Kind, Limit, kind_of
from tuner.core.policy.settings import Policy
from tuner.core.records import (
    Attempt,
    AttemptState,
    Json,
    Pool,
    PoolTotals,
    RunEnd,
    StopReason,
    Study,
    TrialState,
)
from tuner.engine.live_trial import LiveTrial
from tuner.engine.polling import PollQueue
from tuner.engine.quotas import as_kept
from tuner.spec.study_file import StudySpec

if TYPE_CHECKING:
    from tuner.search.proposer import Proposer  # Optuna is slow to import, and `status` passes here


@dataclass
class LiveStudy:
    """One study, as its engine knows it."""

    spec: StudySpec
    policy: Policy
    proposer: "Proposer"
    last_seq: int
    trial_count: int  # of all; a new one gets this number
    spent_microusd: int
    spot_ratio: float | None = None  # the largest of ended spot attempts; None before one shows it
    trials: dict[int, LiveTrial] = field(default_factory=dict)
    polls: PollQueue = field(default_factory=PollQueue)
    last_recorded_at: datetime | None = None
    retried: int = 0  # trials that repeat failed ones, outside the total
    troubles: dict[str, Exception] = field(default_factory=dict)  # what failed when last tried, the latest at the end
    sync_delay_s: float = 0.0  # how late files of the checkpoint folder reach the storage, if known
    compared: bool = False  # a job that this process created was compared with its request
    uncompared: set[str] = field(default_factory=set)  # jobs that this process created and has not described yet
    rejections: list[str] = field(default_factory=list)  # why the last creates in a row were rejected
    halted: Message | None = None  # why no further job makes sense: it would be as wrong, or be refused again
    totals: dict[Pool, PoolTotals] = field(default_factory=dict)  # of attempts that have ended, of other studies too
    limits: dict[Kind, Limit] = field(default_factory=dict)
    lost_at: dict[Pool, datetime] = field(default_factory=dict)
    snapshot: CapacitySnapshot = field(init=False)  # the pools at the last refresh

    @property
    def refused(self) -> str | None:
        """Why nothing goes on until the user renews credentials or provides a secret; None if nothing is refused."""
        refusals = (e for e in self.troubles.values() if isinstance(e, CredentialsRefused | SecretMissing))
        return next((str(error) for error in refusals), None)

    @property
    def in_flight(self) -> int:
        """Live attempts."""
        return sum(trial.attempt is not None for trial in self.trials.values())

    @property
    def reads_on(self) -> bool:
        """More lies under a prefix than one read returns."""
        return any(trial.more for trial in self.trials.values())

    @property
    def concluding(self) -> bool:
        """An attempt has ended whose meaning is not written yet."""
        return any(
            trial.record.state is TrialState.RUNNING and trial.ended_attempt is not None
            for trial in self.trials.values()
        )

    def waiting(self) -> list[LiveTrial]:
        """Unfinished trials without a job, in the order in which they get one."""
        # a proposal gets its attempt in the commit that records it, except one that repeats a failed trial
        states = (TrialState.BACKING_OFF, TrialState.PROPOSED)
        waiting = [trial for trial in self.trials.values() if trial.record.state in states]
        return sorted(waiting, key=lambda trial: trial.record.number)

    def wants_more(self, study: Study) -> bool:
        """Whether the total of trials is not proposed yet."""
        return self.trial_count - self.retried < self.policy.trials and not study.exhausted

    def past_deadline(self, now: datetime) -> bool:
        return stopping.past_deadline(self.policy, now)

    # --- what a trial may cost

    def billed_ratio(self, *, spot: bool) -> float:
        return budget.billed_ratio(self.spot_ratio, spot=spot)

    def learn_ratio(self, ratio: float | None) -> None:
        """Note the ratio of an attempt that has just ended; None: it shows nothing."""
        if ratio is not None:
            self.spot_ratio = max(ratio, self.spot_ratio or 0.0)

    def may_have_cost(self, trial: LiveTrial, now: datetime) -> int:
        """In micro-dollars, the estimate of the live attempt included."""
        return budget.may_have_cost(trial.attempts, trial.presence, self._ratio_of(trial), now)

    def limit_reached_at(self, trial: LiveTrial) -> datetime | None:
        """When a trial may have cost its limit if its instances stay up; None if that is not in sight."""
        return budget.limit_reached_at(trial.attempts, trial.presence, self._ratio_of(trial), self.policy)

    def _ratio_of(self, trial: LiveTrial) -> float:
        return self.billed_ratio(spot=bool(trial.attempts) and trial.attempts[-1].spot)

    # --- pools

    def goes_on_demand(self, trial: LiveTrial | None) -> bool:
        """Whether the next attempt of this trial, or the first of a new one, is on demand."""
        if trial is None:
            return not self.policy.spot
        no_progress = self.policy.on_demand_after is not None and trial.no_progress
        return placement.next_on_demand(trial.attempts, self.policy, self.snapshot, no_progress=no_progress)

    def may_go_on_demand(self, trial: LiveTrial) -> bool:
        """Whether the last attempt of this trial is on spot, and the next one would be on demand."""
        return trial.attempts[-1].spot and self.goes_on_demand(trial)

    def refresh_capacity(self, now: datetime) -> CapacitySnapshot:
        """Count all pools again; placements follow the last count. The cost grows with what is in flight."""
        snapshot = CapacitySnapshot(now=now, instance_count=self.policy.instance_count, limits=self.limits)
        here: defaultdict[Pool, list[Presence]] = defaultdict(list)
        totals = dict(self.totals)
        for trial in self.trials.values():
            attempt = trial.attempt
            if attempt is None:
                snapshot.movers += trial.moved
                continue
            pool = attempt.pool
            snapshot.attempts[kind_of(pool)] += 1
            snapshot.jobs[kind_of(pool)] += attempt.arn is not None
            snapshot.movers += attempt.stop_reason is StopReason.MOVE
            if attempt.arn is not None:
                totals[pool] = totals.get(pool, PoolTotals()) + placement.totals_of(attempt)
                if attempt.state is not AttemptState.STOPPING:
                    here[pool].append(trial.presence or Presence(up=False, since=attempt.submitted_at or now))
        snapshot.stats = {
            pool: placement.pool_stats(totals.get(pool, PoolTotals()), here[pool], self.lost_at.get(pool), now)
            for pool in totals.keys() | self.lost_at.keys() | here.keys()
        }
        self.snapshot = snapshot
        return snapshot

    def choose_pool(self, trial: LiveTrial | None) -> Pool | None:
        """The pool of this trial's next attempt, or of a new trial's first; None while it gets none.

        Then no pool that the budget allows has room under its quota, or the budget allows none: `fits_budget`.
        """
        attempts, on_demand = trial.attempts if trial is not None else (), self.goes_on_demand(trial)
        return placement.choose_pool(attempts, self.policy, self.snapshot, on_demand=on_demand, pays=self._pays(trial))

    def choose_other_pool(self, trial: LiveTrial) -> Pool | None:
        """Where else the live attempt could go for which no job exists yet; None: nowhere now."""
        others = self.reserved_in_flight_microusd - trial.attempts[-1].reserved_microusd
        return placement.choose_other_pool(
            trial.attempts,
            self.policy,
            self.snapshot,
            on_demand=self.goes_on_demand(trial),
            pays=lambda pool: self.fits(others + self.reservation_instead(trial, pool)),
        )

    def reservation_instead(self, trial: LiveTrial, pool: Pool) -> int:
        """What the live attempt would reserve in this pool."""
        rate = self.policy.rate_microusd_per_h(pool.instance_type)
        return budget.reservation_microusd(trial.attempts[-1].max_run_s, rate, self.policy)

    def could_pay(self, trial: LiveTrial, pool: Pool) -> bool:
        """Whether the budget would let this trial go on in another pool than its live attempt's."""
        dearer = self.reservation(trial, pool) - trial.attempts[-1].reserved_microusd
        return self.fits(self.reserved_in_flight_microusd + dearer)

    def learn_limit(self, kind: Kind, instances: int, now: datetime) -> dict[str, Json]:
        """Remember a quota; returns the attribute to store with the study."""
        self.limits[kind] = Limit(instances=instances, learned_at=now)
        return as_kept(self.limits)

    def forget_limit(self, kind: Kind) -> dict[str, Json]:
        """Forget a quota that was raised; returns the attribute to store with the study."""
        del self.limits[kind]
        return as_kept(self.limits)

    def lost(self, pool: Pool, at: datetime) -> None:
        """Note that the study lost capacity in this pool."""
        self.lost_at[pool] = max(at, self.lost_at.get(pool, at))

    def recall_losses(self) -> None:
        """Note the interruptions of unfinished trials before this engine started."""
        for trial in self.trials.values():
            pools = {attempt.number: attempt.pool for attempt in trial.attempts}
            for run in trial.runs:
                if run.ended_at is not None and run.end is RunEnd.INTERRUPTED:
                    self.lost(pools[run.attempt], run.ended_at)

    def ended(self, attempt: Attempt) -> None:
        """Add an attempt that has ended to the totals of its pool."""
        self.totals[attempt.pool] = self.totals.get(attempt.pool, PoolTotals()) + placement.totals_of(attempt)
        at = placement.lost_at(attempt)
        if at is not None:
            self.lost(attempt.pool, at)

    # --- budget

    def next_reservation(self, trial: LiveTrial) -> int:
        """What the next attempt of this unfinished trial would reserve."""
        pool = self.choose_pool(trial) or placement.listed(self.policy, spot=not self.goes_on_demand(trial))[0]
        return self.reservation(trial, pool)

    def reservation(self, trial: LiveTrial | None, pool: Pool) -> int:
        """What an attempt in this pool would reserve."""
        attempts = trial.attempts if trial is not None else []
        return budget.next_reservation_microusd(attempts, pool.instance_type, self.policy)

    @property
    def reserved_in_flight_microusd(self) -> int:
        return sum(trial.attempt.reserved_microusd for trial in self.trials.values() if trial.attempt is not None)

    @property
    def reserved_microusd(self) -> int:
        """What attempts in flight, and the next attempts of unfinished trials, may still bill."""
        return self.reserved_in_flight_microusd + sum(self.next_reservation(trial) for trial in self.waiting())

    def fits_budget(self, trial: LiveTrial | None) -> bool:
        """Whether the next attempt of this trial, or of a new one, fits the budget in any pool, even a full or dry one.

        A new trial comes after all unfinished ones, an unfinished one only after what is in flight.
        """
        pools = placement.usable(self.policy, self.snapshot, on_demand=self.goes_on_demand(trial))
        return any(map(self._pays(trial), pools))

    def _pays(self, trial: LiveTrial | None) -> Callable[[Pool], bool]:
        """Whether the budget lets this trial's next attempt, or a new one's first, go to a pool."""
        if self.policy.budget_microusd is None:
            return lambda _pool: True
        others = self.reserved_microusd if trial is None else self.reserved_in_flight_microusd
        return lambda pool: self.fits(others + self.reservation(trial, pool))

    def fits(self, reserved_microusd: int) -> bool:
        """Whether the budget has room for these reservations in addition to what is spent."""
        return budget.fits(self.spent_microusd, reserved_microusd, self.policy)
