"""What a trial may still use, what its attempts reserve, and whether that fits.

Rules: pure. Amounts are integer micro-dollars. An attempt reserves the most that it may bill: estimates never enter the
test whether something fits. An estimate stops trials, so it is never hopeful. Only what a trial did cost ends it.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from tuner.core.policy.history import Presence
from tuner.core.policy.settings import Policy
from tuner.core.prices import cost_microusd
from tuner.core.records import Attempt, StopReason

# A trial that was stopped at its limit and has used 90 % of it is not restarted.
_LIMIT_REACHED = 0.9
# A bill for less training than this does not show the discount: rounding hides it.
DISCOUNT_SHOWN_S = 60
# No discount is larger than 90 %. A bill below that was waived in part, and says nothing about the next job.
_SMALLEST_SPOT_RATIO = 0.1


# --- what a trial may still use


def max_run_left_s(attempts: Sequence[Attempt], policy: Policy) -> int:
    """Seconds of training that a trial may still use, over all its attempts; at most 0 when used up."""
    return int(policy.max_run_s - sum(attempt.run_s for attempt in attempts))


def final_microusd(attempts: Sequence[Attempt]) -> int:
    """The cost of a trial's ended attempts."""
    return sum(attempt.spend_microusd or 0 for attempt in attempts)


def has_cost_its_limit(attempts: Sequence[Attempt], policy: Policy) -> bool:
    """Whether a trial without a job gets no other one because of the final cost of its attempts.

    A trial is stopped at its limit for what it might have cost. So it goes on if enough is left for more than a start.
    """
    limit = policy.trial_budget_microusd
    if limit is None or not attempts:
        return False
    enough = _LIMIT_REACHED if attempts[-1].stop_reason is StopReason.TRIAL_BUDGET else 1.0
    return final_microusd(attempts) >= enough * limit


def passes_its_limit(may_have_cost_microusd: int, policy: Policy) -> bool:
    """Whether a trial with a live job may have cost more than its limit."""
    return policy.trial_budget_microusd is not None and may_have_cost_microusd > policy.trial_budget_microusd


# --- what a live job may have cost


def spot_ratio(spot: bool, billable_s: int | None, training_s: int | None) -> float | None:  # noqa: FBT001 - a column
    """Billed over training time of an ended attempt, where that shows what spot costs.

    Equal figures show nothing: they are booked where the service lost the real ones. Nor does a job that was not
    billed.
    """
    if not spot or not billable_s or training_s is None:
        return None
    return billable_s / training_s if DISCOUNT_SHOWN_S <= training_s > billable_s else None


def billed_ratio(largest_spot_ratio: float | None, *, spot: bool) -> float:
    """Billed over training time as estimates take it: the study's worst spot discount so far, none before there is one.

    `largest_spot_ratio` is the largest `spot_ratio` of the study's ended attempts.
    """
    if not spot or largest_spot_ratio is None:
        return 1.0
    return max(largest_spot_ratio, _SMALLEST_SPOT_RATIO)


def microusd_per_s(attempt: Attempt, ratio: float) -> float:
    """The estimated price of a second of this attempt; `ratio` is the `billed_ratio`."""
    return attempt.instance_count * attempt.rate_microusd_per_h * ratio / 3600


def may_have_cost(attempts: Sequence[Attempt], presence: Presence | None, ratio: float, now: datetime) -> int:
    """Final figures of a trial and the estimate of its live attempt, whose job runs on since it was last described."""
    known = final_microusd(attempts)
    if not attempts or not attempts[-1].live:
        return known
    attempt, unseen_s = attempts[-1], 0.0
    if presence is not None and presence.up and attempt.observed_at is not None:
        unseen_s = max(0.0, (now - attempt.observed_at).total_seconds())
    return known + attempt.estimated_microusd + round(unseen_s * microusd_per_s(attempt, ratio))


def limit_reached_at(
    attempts: Sequence[Attempt], presence: Presence | None, ratio: float, policy: Policy
) -> datetime | None:
    """When a trial may have cost its limit if its instances stay up; None if that is not in sight."""
    limit = policy.trial_budget_microusd
    if limit is None or not attempts or not attempts[-1].live or presence is None or not presence.up:
        return None
    attempt = attempts[-1]
    if attempt.observed_at is None:
        return None
    left_microusd = limit - may_have_cost(attempts, presence, ratio, attempt.observed_at)
    left_s = left_microusd / microusd_per_s(attempt, ratio)
    return attempt.observed_at + timedelta(seconds=min(max(0.0, left_s) + 1, attempt.max_run_s))


def dearest_s(attempt: Attempt, now: datetime) -> int:
    """The most that a job whose figures are gone can have billed: it may have run on since it was last described.

    It is never more than the attempt reserves.
    """
    unseen_s = max(0.0, (now - (attempt.observed_at or attempt.created_at)).total_seconds())
    reserved_s = attempt.reserved_microusd * 3600 // (attempt.instance_count * attempt.rate_microusd_per_h)
    return min(reserved_s, math.ceil(attempt.run_s + attempt.upload_s + unseen_s))


# --- reservations


def reservation_microusd(run_s: float, rate_microusd_per_h: int, policy: Policy) -> int:
    """The most that an attempt may bill: its training, and what may pass before it is stopped and uploaded."""
    seconds = run_s + policy.poll_s + policy.stop_within_s + policy.stop_grace_s + policy.upload_allowance_s
    return -int(-seconds * policy.instance_count * rate_microusd_per_h // 3600)


def next_reservation_microusd(attempts: Sequence[Attempt], instance_type: str, policy: Policy) -> int:
    """What the next attempt of a trial would reserve on this instance type; a new trial has no attempts."""
    left_s = max(0, max_run_left_s(attempts, policy))
    return reservation_microusd(left_s, policy.rate_microusd_per_h(instance_type), policy)


def fits(spent_microusd: int, reserved_microusd: int, policy: Policy) -> bool:
    """Whether the budget has room for these reservations in addition to what is spent."""
    return policy.budget_microusd is None or spent_microusd + reserved_microusd <= policy.budget_microusd


# --- the worst case


def worst_case_microusd(policy: Policy, max_wait_s: int) -> int:
    """The most that a study on spot may bill if AWS reads what it does not document against us.

    `MaxRuntime` may count each run of a job separately. A running engine ends a job that passes its `max_run` anyway,
    and then the budget holds. While no engine runs, only `max_wait` ends a job that is interrupted again and again.
    Jobs in flight when the budget is full may overrun their reservations by that much, and none is submitted after
    that. A reservation includes the time after the last stop, a poll and `stop_within`. Without a budget the result
    holds for one job a trial.
    """
    rate = max(policy.rates_microusd_per_h)
    if policy.budget_microusd is not None:
        overrun_s = max(0.0, max_wait_s - policy.poll_s - policy.stop_within_s)
        overrun_microusd = cost_microusd(math.ceil(overrun_s), policy.instance_count, rate)
        return policy.budget_microusd + policy.parallel * overrun_microusd
    job_s = math.ceil(max_wait_s + policy.stop_grace_s + policy.upload_allowance_s)
    job_microusd = cost_microusd(job_s, policy.instance_count, rate)
    return policy.trials * (cost_microusd(policy.max_run_s, policy.instance_count, rate) + job_microusd)
