"""What a trial may still use, what attempts reserve, and the worst case."""

import pytest
from policy_cases import attempt, policy

from tuner.core.policy import budget
from tuner.core.records import StopReason


@pytest.mark.parametrize(
    ("limit", "stop", "final", "reached"),
    [
        (None, StopReason.TRIAL_BUDGET, 10**9, False),
        (1000, None, 999, False),
        (1000, None, 1000, True),
        (1000, StopReason.TRIAL_BUDGET, 899, False),  # stopped for what it might have cost
        (1000, StopReason.TRIAL_BUDGET, 900, True),  # hardly worth another start
    ],
)
def test_only_what_a_trial_did_cost_ends_it(limit, stop, final, reached):
    attempts = [attempt(spend_microusd=400), attempt(spend_microusd=final - 400, stop_reason=stop)]
    assert budget.has_cost_its_limit(attempts, policy(trial_budget_microusd=limit)) is reached


@pytest.mark.parametrize(
    ("spot", "billable_s", "training_s", "told"),
    [
        (True, 35, 100, 0.35),
        (True, None, None, None),
        (True, 20, 59, None),  # rounding
        (True, 100, 100, None),  # what is booked where the figures were lost
        (False, 100, 100, None),
    ],
)
def test_which_ended_attempts_tell_what_spot_costs(spot, billable_s, training_s, told):
    assert budget.spot_ratio(spot, billable_s, training_s) == told


def test_a_reservation_covers_all_that_may_pass_before_the_bill_ends():
    seconds = 3600 + 30 + 300 + 120 + 300
    assert budget.reservation_microusd(3600, 1_000_000, policy()) == -(-seconds * 1_000_000 // 3600)
