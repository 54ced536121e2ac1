"""What a trial may still use, what attempts reserve, and the worst case."""

import math

import pytest
from policy_cases import NOW, at, attempt, policy

from tuner.core.policy import budget
from tuner.core.policy.history import Presence
from tuner.core.records import AttemptState, StopReason


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


@pytest.mark.parametrize(
    ("largest", "spot", "ratio"),
    [
        (None, True, 1.0),
        (0.4, True, 0.4),
        (0.4, False, 1.0),
        (0.02, True, 0.1),  # no discount is larger than 90 %
    ],
)
def test_estimates_take_the_worst_discount_so_far(largest, spot, ratio):
    assert budget.billed_ratio(largest, spot=spot) == ratio


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"run_s": 100.0}, 110),
        ({"run_s": 100.0, "upload_s": 40.0}, 150),
        ({"observed_at": None, "created_at": at(-50)}, 60),
        ({"run_s": 100.0, "reserved_microusd": 30_000}, 108),  # no more than it reserves
        ({"observed_at": at(20), "run_s": 100.0}, 100),  # our clock was ahead
    ],
)
def test_a_job_whose_figures_are_gone_is_booked_as_dear_as_it_can_have_been(changes, seconds):
    lost = attempt(**{"reserved_microusd": 10**9, "observed_at": NOW} | changes)
    assert budget.dearest_s(lost, at(10)) == seconds


def test_a_live_job_is_estimated_to_run_on_since_it_was_seen():
    ended = attempt(spend_microusd=1000)
    live = attempt(state=AttemptState.TRAINING, estimated_microusd=500, observed_at=at(-36))
    up, down = Presence(up=True, since=NOW), Presence(up=False, since=NOW)
    assert budget.may_have_cost([ended], None, 0.5, NOW) == 1000
    assert budget.may_have_cost([ended, live], down, 0.5, NOW) == 1500
    assert budget.may_have_cost([ended, live], up, 0.5, NOW) == 1500 + 5000


@pytest.mark.parametrize(("cost", "limit", "passes"), [(1001, 1000, True), (1000, 1000, False), (10**9, None, False)])
def test_a_trial_passes_its_own_limit(cost, limit, passes):
    assert budget.passes_its_limit(cost, policy(trial_budget_microusd=limit)) is passes


def test_when_a_trial_may_have_cost_its_limit():
    rules, up = policy(trial_budget_microusd=2500), Presence(up=True, since=NOW)
    live = attempt(state=AttemptState.TRAINING, estimated_microusd=500, observed_at=NOW)
    assert budget.limit_reached_at([live], up, 0.5, rules) == at(2000 * 3600 / 500_000 + 1)
    assert budget.limit_reached_at([live], Presence(up=False, since=NOW), 0.5, rules) is None
    assert budget.limit_reached_at([live], up, 0.5, policy()) is None
    assert budget.limit_reached_at([attempt()], up, 0.5, rules) is None


def test_max_run_is_used_up_by_all_attempts_together():
    assert budget.max_run_left_s([attempt(run_s=1000.5), attempt(run_s=2000.0)], policy()) == 599
    reserved = budget.next_reservation_microusd([attempt(run_s=3000.0)], "ml.b.large", policy())
    assert reserved == (600 + 30 + 300 + 120 + 300) * 2_000_000 // 3600
    over = budget.next_reservation_microusd([attempt(run_s=9000.0)], "ml.a.large", policy())
    assert over == math.ceil((30 + 300 + 120 + 300) * 1_000_000 / 3600)


@pytest.mark.parametrize(
    ("limit", "spent", "reserved", "fits"),
    [(None, 10**9, 10**9, True), (100, 60, 40, True), (100, 60, 41, False)],
)
def test_what_fits_the_budget(limit, spent, reserved, fits):
    assert budget.fits(spent, reserved, policy(budget_microusd=limit)) is fits


def test_the_worst_case_with_a_budget_is_an_overrun_of_each_parallel_job():
    """A poll and `stop_within` are in the reservations already."""
    each_microusd = round((7200 - 30 - 300) * 2_000_000 / 3600)
    assert budget.worst_case_microusd(policy(budget_microusd=5_000_000), 7200) == 5_000_000 + 2 * each_microusd
    assert budget.worst_case_microusd(policy(budget_microusd=5_000_000), 200) == 5_000_000


def test_the_worst_case_without_a_budget_is_one_job_a_trial():
    job_s = 3600 + 7200 + 120 + 300
    assert budget.worst_case_microusd(policy(), 7200) == pytest.approx(10 * job_s * 2_000_000 / 3600, abs=10)
