"""What the engine keeps in memory: the study's totals, and its unfinished trials with everything decisions need.

Rules: it is a copy of rows and of what lies under the prefixes, and may be thrown away at any time. Its size follows
what is in flight, not what is recorded. Nothing here writes, and nothing here decides.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

from tuner.core.jobs import CredentialsRefused, SecretMissing
from tuner.core.policy import budget, placement, proof, stopping
from tuner.core.policy.history import Presence
from tuner.core.policy.placement import CapacitySnapshot, Kind, Limit, kind_of
from tuner.core.policy.proof import Steps
from tuner.core.policy.settings import Policy
from tuner.core.records import (
    NO_STEP,
    Attempt,
    AttemptEnd,
    AttemptState,
    Json,
    MetricPoint,
    Point,
    Pool,
    PoolTotals,
    ProgressReport,
    Run,
    RunEnd,
    RunRecord,
    StopReason,
    Study,
    Trial,
    TrialState,
)
from tuner.engine.polling import Rounds
from tuner.spec.study_file import StudySpec

if TYPE_CHECKING:
    from tuner.search.proposer import Proposer  # Optuna is slow to import, and `status` passes here

# Attribute of a study: the quotas that Service Quotas told at launch, and refusals since.
_LIMITS = "tuner:limits"


@dataclass(frozen=True, slots=True)
class Silence:
    """For how long nothing new was seen of a trial, by the clock of the engine that looks; see `signs.listen`."""

    looked_at: datetime | None = None  # when all that lay there was read last
    sign: tuple[object, ...] = ()  # what was seen then; any other one is a sign of life
    lasted_s: float = 0.0


@dataclass
class LiveTrial:
    """A trial that has not ended, with everything that decisions about it need."""

    trial: Trial
    attempts: list[Attempt] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    records: dict[tuple[int, str], RunRecord] = field(default_factory=dict)  # by attempt, run id
    steps: dict[tuple[int, str], Steps] = field(default_factory=dict)
    heard_at: datetime | None = None  # when a step was reported last
    latest: dict[tuple[str, int], Point] = field(default_factory=dict)  # by metric, step
    host: str | None = None  # whose metrics count: the first
    checkpoint_step: int | None = None
    checkpoint_at: datetime | None = None
    unread: bool = True  # something may lie under the prefix that was not read
    silence: Silence = Silence()
    more: bool = False  # the last look was cut short, and the next one goes on from there
    presence: Presence | None = None  # of the last attempt's job, as described last
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
        """Since when the live attempt's job has no instances; None if it has some, or if nobody has looked."""
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
        """When the live attempt's job has used up its `max_run`, should its instances stay up; None if they are not."""
        attempt = self.attempt
        if attempt is None or attempt.observed_at is None or self.presence is None or not self.presence.up:
            return None
        return attempt.observed_at + timedelta(seconds=attempt.max_run_s - attempt.run_s)

    @property
    def no_progress(self) -> bool:
        """Whether the trial trains for nothing: whole runs, and no newer checkpoint; on demand, since it went there."""
        if self.unread:
            return False
        return proof.no_progress(self.runs, self.attempts, self.checkpoint_at)

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

    def hear(self, at: datetime) -> None:
        """A step was reported."""
        self.heard_at = max(self.heard_at or at, at)

    def _take_point(self, raw: MetricPoint) -> Point | None:
        if raw.host != self.host:
            return None
        step = NO_STEP if raw.step is None else raw.step
        if raw.step is not None:
            seen = self.steps.get((raw.attempt, raw.run))
            # the first in order of reporting, not the lowest: a run starts where it starts
            seen = Steps(seen.first, max(seen.last, step), seen.at) if seen else Steps(step, step)
            seen.at.setdefault(step, raw.at)
            self.steps[raw.attempt, raw.run] = seen
        known = self.latest.get((raw.name, step))
        if known is not None:
            # stores of before name it otherwise, and that name would win over what replaces it
            run_id = "-cloudwatch" if known.run_id == "cloudwatch" else known.run_id
            if (raw.attempt, raw.run) < (known.attempt, run_id):
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
        self.hear(raw.at)
        return None if known == point else point


@dataclass
class LiveStudy:
    """One study, as its engine knows it."""

    spec: StudySpec
    policy: Policy
    proposer: "Proposer"
    last_seq: int
    trial_count: int  # of all; a new one gets this number
    spent_microusd: int
    spot_ratio: float | None = None  # the largest of ended spot attempts; None before one tells
    trials: dict[int, LiveTrial] = field(default_factory=dict)
    rounds: Rounds = field(default_factory=Rounds)
    last_recorded_at: datetime | None = None
    retried: int = 0  # trials that repeat failed ones, outside the total
    troubles: dict[str, Exception] = field(default_factory=dict)  # what failed when last tried, the latest last
    sync_delay_s: float = 0.0  # how late files of the checkpoint folder reach the store, where that is known
    compared: bool = False  # a job that this process created was compared with what was asked for
    uncompared: set[str] = field(default_factory=set)  # jobs that it created and has not described yet
    rejections: list[str] = field(default_factory=list)  # why creates were refused for good, since one was not
    halted: str | None = None  # why no further job makes sense: they would come out alike, or be refused alike
    totals: dict[Pool, PoolTotals] = field(default_factory=dict)  # of attempts that have ended, of other studies too
    limits: dict[Kind, Limit] = field(default_factory=dict)
    lost_at: dict[Pool, datetime] = field(default_factory=dict)
    snapshot: CapacitySnapshot = field(init=False)  # the pools, as of the last look

    @property
    def refused(self) -> str | None:
        """Why nothing goes on before the user renews credentials or gives back a secret; None while all is well."""
        refusals = (e for e in self.troubles.values() if isinstance(e, CredentialsRefused | SecretMissing))
        return next((str(error) for error in refusals), None)

    @property
    def in_flight(self) -> int:
        """Live attempts."""
        return sum(work.attempt is not None for work in self.trials.values())

    @property
    def reads_on(self) -> bool:
        """More lies under a prefix than one look reads."""
        return any(work.more for work in self.trials.values())

    @property
    def concluding(self) -> bool:
        """An attempt has ended whose meaning is not written yet."""
        return any(
            work.trial.state is TrialState.RUNNING and work.ended_attempt is not None for work in self.trials.values()
        )

    def waiting(self) -> list[LiveTrial]:
        """Unfinished trials without a job, in the order in which they get one."""
        # a proposal gets its job in the commit that records it, but for one that repeats a failed trial
        states = (TrialState.BACKING_OFF, TrialState.PROPOSED)
        waiting = [work for work in self.trials.values() if work.trial.state in states]
        return sorted(waiting, key=lambda work: work.trial.number)

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

    def may_have_cost(self, work: LiveTrial, now: datetime) -> int:
        """In micro-dollars, the estimate of the live attempt included."""
        return budget.may_have_cost(work.attempts, work.presence, self._ratio_of(work), now)

    def limit_reached_at(self, work: LiveTrial) -> datetime | None:
        """When a trial may have cost its limit if its instances stay up; None if that is not in sight."""
        return budget.limit_reached_at(work.attempts, work.presence, self._ratio_of(work), self.policy)

    def _ratio_of(self, work: LiveTrial) -> float:
        return self.billed_ratio(spot=bool(work.attempts) and work.attempts[-1].spot)

    # --- pools

    def goes_on_demand(self, work: LiveTrial | None) -> bool:
        """Whether the next attempt of this trial, or the first of a new one, is on demand."""
        if work is None:
            return not self.policy.spot
        if self.policy.spot and placement.shut(self.policy, self.snapshot, spot=False):
            return False  # accounts often have no quota on demand: spot may come back, such a quota does not
        return placement.goes_on_demand(work.attempts, self.policy, no_progress=work.no_progress)

    def refresh_capacity(self, now: datetime) -> CapacitySnapshot:
        """Look at all pools anew; placements follow the last look. It costs what is in flight."""
        snapshot = CapacitySnapshot(now=now, instance_count=self.policy.instance_count, limits=self.limits)
        here: defaultdict[Pool, list[Presence]] = defaultdict(list)
        totals = dict(self.totals)
        for work in self.trials.values():
            attempt = work.attempt
            if attempt is None:
                snapshot.movers += work.moved
                continue
            pool = attempt.pool
            snapshot.attempts[kind_of(pool)] += 1
            snapshot.jobs[kind_of(pool)] += attempt.arn is not None
            snapshot.movers += attempt.stop_reason is StopReason.MOVE
            if attempt.arn is not None:
                totals[pool] = totals.get(pool, PoolTotals()) + placement.totals_of(attempt)
                if attempt.state is not AttemptState.STOPPING:
                    here[pool].append(work.presence or Presence(up=False, since=attempt.submitted_at or now))
        snapshot.stats = {
            pool: placement.pool_stats(totals.get(pool, PoolTotals()), here[pool], self.lost_at.get(pool), now)
            for pool in totals.keys() | self.lost_at.keys() | here.keys()
        }
        self.snapshot = snapshot
        return snapshot

    def choose_pool(self, work: LiveTrial | None) -> Pool | None:
        """The pool of this trial's next attempt, or of a new one's first; None while it gets none.

        Then no pool that the budget allows it has room under its quota, or the budget allows it none: `fits_budget`.
        """
        attempts, on_demand = work.attempts if work is not None else (), self.goes_on_demand(work)
        return placement.choose_pool(attempts, self.policy, self.snapshot, on_demand=on_demand, pays=self._pays(work))

    def choose_other_pool(self, work: LiveTrial) -> Pool | None:
        """Where else the live attempt could go for which no job exists yet: another kind, with room, in the budget.

        From on demand it goes back to spot where no listed type has a quota on demand; never the other way.
        """
        attempt = work.attempts[-1]
        on_demand = self.goes_on_demand(work)
        if attempt.spot and on_demand:
            return None
        beside = self.reserved_in_flight_microusd - attempt.reserved_microusd
        pool = placement.choose_pool(
            work.attempts[:-1],
            self.policy,
            self.snapshot,
            on_demand=on_demand,
            without=kind_of(attempt.pool),
            pays=lambda pool: self.fits(beside + self.reservation_instead(work, pool)),
        )
        return None if pool is None or self.snapshot.closed(kind_of(pool)) else pool

    def reservation_instead(self, work: LiveTrial, pool: Pool) -> int:
        """What the live attempt would reserve in this pool."""
        rate = self.policy.rate_microusd_per_h(pool.instance_type)
        return budget.reservation_microusd(work.attempts[-1].max_run_s, rate, self.policy)

    def could_pay(self, work: LiveTrial, pool: Pool) -> bool:
        """Whether the budget would let this trial go on in another pool than its live attempt's."""
        dearer = self.reservation(work, pool) - work.attempts[-1].reserved_microusd
        return self.fits(self.reserved_in_flight_microusd + dearer)

    def learn_limit(self, kind: Kind, instances: int, now: datetime) -> dict[str, Json]:
        """Remember a quota; returns what is to be kept with the study."""
        self.limits[kind] = Limit(instances=instances, learned_at=now)
        return _kept(self.limits)

    def forget_limit(self, kind: Kind) -> dict[str, Json]:
        """A quota was raised: more fits than it allowed; returns what is to be kept with the study."""
        del self.limits[kind]
        return _kept(self.limits)

    def lost(self, pool: Pool, at: datetime) -> None:
        """Capacity took something of the study's in this pool."""
        self.lost_at[pool] = max(at, self.lost_at.get(pool, at))

    def recall_losses(self) -> None:
        """What capacity took from unfinished trials before this engine came."""
        for work in self.trials.values():
            pools = {attempt.number: attempt.pool for attempt in work.attempts}
            for run in work.runs:
                if run.ended_at is not None and run.end is RunEnd.INTERRUPTED:
                    self.lost(pools[run.attempt], run.ended_at)

    def ended(self, attempt: Attempt) -> None:
        """An attempt is not live any more: from now on its pool's totals hold it."""
        self.totals[attempt.pool] = self.totals.get(attempt.pool, PoolTotals()) + placement.totals_of(attempt)
        if attempt.stop_reason is StopReason.MOVE and attempt.stop_wanted_at is not None:
            self.lost(attempt.pool, attempt.stop_wanted_at)
        elif attempt.end in (AttemptEnd.CAPACITY, AttemptEnd.MAX_WAIT) and attempt.ended_at is not None:
            self.lost(attempt.pool, attempt.ended_at)

    # --- budget

    def next_reservation(self, work: LiveTrial) -> int:
        """What the next attempt of this unfinished trial would reserve."""
        pool = self.choose_pool(work) or placement.listed(self.policy, spot=not self.goes_on_demand(work))[0]
        return self.reservation(work, pool)

    def reservation(self, work: LiveTrial | None, pool: Pool) -> int:
        """What an attempt in this pool would reserve."""
        attempts = work.attempts if work is not None else []
        return budget.next_reservation_microusd(attempts, pool.instance_type, self.policy)

    @property
    def reserved_in_flight_microusd(self) -> int:
        return sum(work.attempt.reserved_microusd for work in self.trials.values() if work.attempt is not None)

    @property
    def reserved_microusd(self) -> int:
        """What attempts in flight, and those that unfinished trials are due, may still bill."""
        return self.reserved_in_flight_microusd + sum(self.next_reservation(work) for work in self.waiting())

    def fits_budget(self, work: LiveTrial | None) -> bool:
        """Whether the next attempt of this trial, or of a new one, fits the budget in any pool, taken or dry as it is.

        A new trial stands behind all unfinished ones; an unfinished one only behind what is in flight.
        """
        pools = placement.usable(self.policy, self.snapshot, on_demand=self.goes_on_demand(work))
        return any(map(self._pays(work), pools))

    def _pays(self, work: LiveTrial | None) -> Callable[[Pool], bool]:
        """Whether the budget lets this trial's next attempt, or a new one's first, go to a pool."""
        if self.policy.budget_microusd is None:
            return lambda _pool: True
        others = self.reserved_microusd if work is None else self.reserved_in_flight_microusd
        return lambda pool: self.fits(others + self.reservation(work, pool))

    def fits(self, reserved_microusd: int) -> bool:
        """Whether the budget has room for these reservations beside what is spent."""
        return budget.fits(self.spent_microusd, reserved_microusd, self.policy)


def limits_to_keep(quotas: Mapping[Kind, int], now: datetime) -> dict[str, Json]:
    """What is to be kept with a study for which Service Quotas told these, in instances; nothing for none."""
    limits = {kind: Limit(instances=instances, learned_at=now) for kind, instances in quotas.items()}
    return _kept(limits) if limits else {}


def _kept(limits: Mapping[Kind, Limit]) -> dict[str, Json]:
    return {
        _LIMITS: [
            [instance_type, spot, limit.instances, limit.learned_at.isoformat()]
            for (instance_type, spot), limit in limits.items()
        ]
    }


def kept_limits(study: Study) -> dict[Kind, Limit]:
    """The quotas that were learned before this engine came."""
    kept = cast("list[tuple[str, bool, int, str]]", study.attrs.get(_LIMITS, []))
    return {
        (instance_type, spot): Limit(instances=instances, learned_at=datetime.fromisoformat(learned_at))
        for instance_type, spot, instances, learned_at in kept
    }


def is_training(attempt: Attempt) -> bool:
    """Whether the attempt may be writing metrics and checkpoints."""
    return attempt.state in (AttemptState.TRAINING, AttemptState.STOPPING)
