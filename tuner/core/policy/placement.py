"""Where the next job of a trial goes, and when a job that waits for capacity should move to another pool.

SageMaker does not fall back to another instance type for spot, and does not show where it has capacity. All that is
known of a pool comes from our own jobs in it: refusals for a quota, waits, interruptions and ends.

Rules:
- Pure: it decides from a `CapacitySnapshot`, which the engine makes from its rows and what it has seen.
- A pool that the budget does not allow is never chosen, even if all others are dry: the trial waits for those.
- The order of the study file is the preference. A later pool is taken if the earlier ones have no room under their
  quota, are dry, or are known to be slower by more than `_MARGIN`; never for its price.
- Estimates are shrunk: rates are means of Gamma posteriors, with a prior worth two hours of training and two waits. So
  one bad hour does not condemn a pool, and an unused pool counts as an average one.
- A trial returns to a pool that it left for lack of capacity only after it tried the others, or has trained.
- A waiting job moves only after it has waited longer than the move is expected to cost, to a pool that lost nothing
  since. Only one job at a time moves to a pool in which none of ours is up. Each further move of a trial that has not
  trained since waits twice as long. So a drought everywhere moves a trial a few times, not forever.
- On demand only if the study file allows it, and then for the rest of the trial. An account without a quota on demand
  stays on spot.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from tuner.core.policy.history import Presence
from tuner.core.policy.settings import Policy
from tuner.core.records import Attempt, AttemptEnd, Intent, Pool, PoolTotals, StopReason

# A quota counts instances of a type, spot and on-demand separately.
Kind: TypeAlias = tuple[str, bool]

# The prior: an interruption in ten hours, five minutes until a job trains.
_PRIOR_INTERRUPTIONS, _PRIOR_UP_S = 0.2, 7200.0
_PRIOR_WAITS, _PRIOR_WAIT_S = 2.0, 600.0
# A pool loses its place if it is slower than a later one by this factor: estimates of equal pools differ by less.
_MARGIN = 1.5
# A job that has waited less may just be starting. A pool that lost something is avoided for the same time.
PATIENCE_S = 600.0
_DOUBLINGS_MAX = 6
# A limit is tried again after half an hour, so that a raised quota shows.
_LIMIT_BELIEVED = timedelta(minutes=30)
# A quota that allows no job is seldom raised: asking every half hour would stop and reroute jobs in vain.
_CLOSED_BELIEVED = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A quota that a refusal or Service Quotas named."""

    instances: int
    learned_at: datetime

    def believed_until(self, now: datetime) -> datetime | None:
        """Until when the limit is believed; None if that time has passed."""
        until = self.learned_at + _LIMIT_BELIEVED
        return until if now < until else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What is known of a pool, including the study's live jobs."""

    totals: PoolTotals = field(default_factory=PoolTotals)
    up: int = 0  # jobs of the study whose instances are up
    waiting: int = 0
    waited_s: float = 0.0  # by the job that has waited longest
    lost_at: datetime | None = None  # when capacity last took something of the study's

    @property
    def interruptions_per_h(self) -> float:
        """Expected interruptions in an hour of training."""
        return 3600 * (self.totals.interruptions + _PRIOR_INTERRUPTIONS) / (self.totals.up_s + _PRIOR_UP_S)

    @property
    def wait_s(self) -> float:
        """Expected seconds until a job trains, or trains again."""
        return (self.totals.wait_s + _PRIOR_WAIT_S) / (self.totals.waits + _PRIOR_WAITS)

    @property
    def slowness(self) -> float:
        """Hours that an hour of training takes, including the wait before it and the waits after interruptions."""
        return 1 + (1 + self.interruptions_per_h) * self.wait_s / 3600

    def dry(self, now: datetime) -> bool:
        """Whether there seems to be no capacity now: a job waits for it, or has just lost it."""
        if self.up:
            return False
        just_lost = self.lost_at is not None and (now - self.lost_at).total_seconds() < PATIENCE_S
        return just_lost or self.waited_s > PATIENCE_S


@dataclass(slots=True, kw_only=True)
class CapacitySnapshot:
    """All pools at one moment. Code that begins or changes an attempt afterwards counts it here."""

    now: datetime
    instance_count: int
    stats: dict[Pool, PoolStats] = field(default_factory=dict)
    limits: dict[Kind, Limit] = field(default_factory=dict)
    attempts: Counter[Kind] = field(default_factory=Counter)  # live ones
    jobs: Counter[Kind] = field(default_factory=Counter)  # live attempts that are known to have a job
    movers: int = 0  # trials that have left a pool and are in no other yet

    def stats_of(self, pool: Pool) -> PoolStats:
        return self.stats.get(pool) or PoolStats()

    def closed(self, kind: Kind) -> bool:
        """Whether no job fits under the quota, learned within a day: somebody may have raised it since."""
        limit = self.limits.get(kind)
        if limit is None or limit.instances >= self.instance_count:
            return False
        return self.now < limit.learned_at + _CLOSED_BELIEVED

    def has_room(self, kind: Kind, taken: Counter[Kind]) -> bool:
        """Whether one more fits under the quota, if that is known and believed, in addition to `taken`."""
        limit = self.limits.get(kind)
        if limit is None or limit.believed_until(self.now) is None or self.closed(kind):
            return True  # closed kinds were left out before; if all are closed, we can only ask again
        return (taken[kind] + 1) * self.instance_count <= limit.instances


def kind_of(pool: Pool) -> Kind:
    return pool.instance_type, pool.spot


def listed(policy: Policy, *, spot: bool) -> tuple[Pool, ...]:
    """The pools of the study file, in order of preference."""
    return tuple(Pool(each, spot, zone) for each in policy.instance_types for zone in policy.zones)


# --- spot or on demand


def losses(attempts: Sequence[Attempt]) -> int:
    """How often a trial lost its capacity, or did not get any in time."""
    ends = sum(each.end in (AttemptEnd.CAPACITY, AttemptEnd.MAX_WAIT) for each in attempts)
    return ends + sum(each.interruptions for each in attempts)


def shut(policy: Policy, snapshot: CapacitySnapshot, *, spot: bool) -> bool:
    """Whether the account is known to have no quota for any listed type."""
    return all(snapshot.closed(kind_of(pool)) for pool in listed(policy, spot=spot))


def goes_on_demand(attempts: Sequence[Attempt], policy: Policy, *, no_progress: bool = False) -> bool:
    """Whether the next attempt of a trial is on demand; `no_progress`: its runs train without a newer checkpoint."""
    if not policy.spot:
        return True
    if policy.on_demand_after is None:
        return False
    return no_progress or losses(attempts) >= policy.on_demand_after or not all(each.spot for each in attempts)


def next_on_demand(
    attempts: Sequence[Attempt], policy: Policy, snapshot: CapacitySnapshot, *, no_progress: bool
) -> bool:
    """As `goes_on_demand`, but an account without any quota on demand stays on spot.

    Accounts often have no quota on demand: spot capacity may come back, such a quota does not.
    """
    if policy.spot and shut(policy, snapshot, spot=False):
        return False
    return goes_on_demand(attempts, policy, no_progress=no_progress)


# --- the next attempt


def usable(policy: Policy, snapshot: CapacitySnapshot, *, on_demand: bool, without: Kind | None = None) -> list[Pool]:
    """The listed pools that are not known to be closed; all of them if all are closed.

    `without`: leave out this kind, which has just refused a job.
    """
    listing = [pool for pool in listed(policy, spot=not on_demand) if kind_of(pool) != without]
    return [pool for pool in listing if not snapshot.closed(kind_of(pool))] or listing


def choose_pool(
    attempts: Sequence[Attempt],
    policy: Policy,
    snapshot: CapacitySnapshot,
    *,
    on_demand: bool,
    without: Kind | None = None,
    pays: Callable[[Pool], bool] = lambda _pool: True,
) -> Pool | None:
    """The pool of a trial's next attempt; None while no pool that the budget pays for has room under its quota.

    `without`: leave out this kind, which has just refused a job.
    """
    pools = filter(pays, usable(policy, snapshot, on_demand=on_demand, without=without))
    free = [pool for pool in pools if snapshot.has_room(kind_of(pool), snapshot.attempts)]
    return preferred(free, attempts, snapshot) if free else None


def choose_other_pool(
    attempts: Sequence[Attempt],
    policy: Policy,
    snapshot: CapacitySnapshot,
    *,
    on_demand: bool,
    pays: Callable[[Pool], bool],
) -> Pool | None:
    """Where else the last attempt could go for which no job exists yet: another kind, with room, in the budget.

    From on demand it goes back to spot where no listed type has a quota on demand; never the other way.
    """
    here = attempts[-1].pool
    if here.spot and on_demand:
        return None
    pool = choose_pool(attempts[:-1], policy, snapshot, on_demand=on_demand, without=kind_of(here), pays=pays)
    return None if pool is None or snapshot.closed(kind_of(pool)) else pool


def preferred(pools: Sequence[Pool], attempts: Sequence[Attempt], snapshot: CapacitySnapshot) -> Pool:
    """The best of `pools`, given in order of preference, for a trial with these attempts."""
    gone = left(attempts)
    fresh = [pool for pool in pools if pool not in gone]
    if not fresh:
        return min(pools, key=lambda pool: max(index for index, each in enumerate(gone) if each == pool))
    wet = [pool for pool in fresh if not snapshot.stats_of(pool).dry(snapshot.now)]
    return _fastest(wet or fresh, snapshot)


def left(attempts: Sequence[Attempt]) -> list[Pool]:
    """The pools that a trial left for lack of capacity since it last trained, oldest first."""
    gone: list[Pool] = []
    for attempt in reversed(attempts):
        moved = attempt.stop_reason is StopReason.MOVE and attempt.end is AttemptEnd.STOPPED
        if not moved and attempt.end not in (AttemptEnd.CAPACITY, AttemptEnd.MAX_WAIT):
            break
        gone.insert(0, attempt.pool)
        if attempt.run_s > 0:
            break
    return gone


def _fastest(pools: Sequence[Pool], snapshot: CapacitySnapshot) -> Pool:
    best, *others = pools
    for pool in others:
        if snapshot.stats_of(best).slowness > _MARGIN * snapshot.stats_of(pool).slowness:
            best = pool
    return best


def lost_at(attempt: Attempt) -> datetime | None:
    """When capacity took an ended attempt's place in its pool; None if something else ended it."""
    if attempt.stop_reason is StopReason.MOVE and attempt.stop_wanted_at is not None:
        return attempt.stop_wanted_at
    return attempt.ended_at if attempt.end in (AttemptEnd.CAPACITY, AttemptEnd.MAX_WAIT) else None


# --- moving


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A trial whose live job has no instances."""

    trial: int
    attempts: Sequence[Attempt]
    since: datetime
    pays: Callable[[Pool], bool]  # whether the budget lets the trial go on in a pool


def may_move(waiting: Sequence[WaitingJob], policy: Policy, intent: Intent, now: datetime) -> bool:
    """Whether any of these jobs has waited for long enough, and there is somewhere to go."""
    if policy.pools == 1 or intent is not Intent.RUN or not waiting:
        return False
    return (now - min(job.since for job in waiting)).total_seconds() >= PATIENCE_S


def moves(waiting: Sequence[WaitingJob], policy: Policy, snapshot: CapacitySnapshot) -> list[tuple[int, Pool]]:
    """Which trials should wait elsewhere, and where; the longest waiting comes first.

    A place that is given away is counted in `snapshot`.
    """
    moved: list[tuple[int, Pool]] = []
    for job in sorted(waiting, key=lambda job: (job.since, job.trial)):
        pool = elsewhere(job.attempts, policy, snapshot, job.since, job.pays)
        if pool is not None:
            moved.append((job.trial, pool))
            snapshot.movers += 1
            snapshot.attempts[kind_of(pool)] += 1
    return moved


def elsewhere(
    attempts: Sequence[Attempt],
    policy: Policy,
    snapshot: CapacitySnapshot,
    waits_since: datetime,
    pays: Callable[[Pool], bool] = lambda _pool: True,
) -> Pool | None:
    """The pool to which a trial should move that has waited for spot capacity since then; None: it stays."""
    here = attempts[-1].pool
    waited_s = (snapshot.now - waits_since).total_seconds()
    moves = min(len(left(attempts[:-1])), _DOUBLINGS_MAX)
    if not here.spot or waited_s < PATIENCE_S * 2**moves:
        return None
    better = [
        pool
        for pool in listed(policy, spot=True)
        if pool != here
        and _takes_movers(pool, snapshot, waits_since)
        and waited_s >= 2 * snapshot.stats_of(pool).wait_s * 2**moves
        and pays(pool)
    ]
    return preferred(better, attempts[:-1], snapshot) if better else None


def look_again_at(waits_since: datetime | None, policy: Policy, now: datetime) -> datetime | None:
    """When to see again whether a job that waits should move; None where it has nowhere to go, or does not wait."""
    if waits_since is None or policy.pools == 1:
        return None
    patiences = math.ceil((now - waits_since).total_seconds() / PATIENCE_S + 0.001)
    return waits_since + timedelta(seconds=PATIENCE_S * patiences)


def _takes_movers(pool: Pool, snapshot: CapacitySnapshot, since: datetime) -> bool:
    stats, kind = snapshot.stats_of(pool), kind_of(pool)
    if snapshot.closed(kind) or not snapshot.has_room(kind, snapshot.attempts) or stats.dry(snapshot.now):
        return False
    if stats.up:
        return True
    quiet = stats.lost_at is None or stats.lost_at < since
    return quiet and not snapshot.movers and not stats.waiting


def pool_stats(totals: PoolTotals, jobs: Sequence[Presence], lost_at: datetime | None, now: datetime) -> PoolStats:
    """What is known of a pool, from its totals and from the study's live jobs in it."""
    waits_s = [(now - job.since).total_seconds() for job in jobs if not job.up]
    return PoolStats(
        totals=totals,
        up=len(jobs) - len(waits_s),
        waiting=len(waits_s),
        waited_s=max(waits_s, default=0.0),
        lost_at=lost_at,
    )


def totals_of(attempt: Attempt) -> PoolTotals:
    """What one attempt adds to its pool; nothing if it never had a job."""
    if attempt.submitted_at is None:
        return PoolTotals()
    return PoolTotals(
        attempts=1,
        live=int(attempt.live),
        interruptions=attempt.interruptions,
        up_s=attempt.run_s,
        wait_s=attempt.startup_s,
    )
