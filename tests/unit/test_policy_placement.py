"""Placement, rule by rule. What may never happen, whatever is known, stands in `tests/engine/test_pools.py`."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from policy_cases import NOW, at, attempt, policy

from tuner.core.policy import placement
from tuner.core.policy.placement import CapacitySnapshot, Limit, PoolStats, WaitingJob, kind_of
from tuner.core.records import AttemptEnd, AttemptState, Intent, Pool, PoolTotals, StopReason

A, B, C = (Pool(f"ml.{name}.large", spot=True) for name in "abc")
RULES = policy(
    instance_types=tuple(pool.instance_type for pool in (A, B, C)),
    rates_microusd_per_h=(1_000_000, 2_000_000, 3_000_000),
)
MOVED = {"end": AttemptEnd.STOPPED, "stop_reason": StopReason.MOVE}
REFUSED = {"end": AttemptEnd.CAPACITY}
GAVE_UP = {"end": AttemptEnd.MAX_WAIT}


def snapshot(**changes):
    return CapacitySnapshot(**{"now": NOW, "instance_count": 1} | changes)


def ended(pool, **changes):
    return attempt(instance_type=pool.instance_type, spot=pool.spot, **changes)


def waiting(pool):
    return ended(pool, state=AttemptState.WAITING)


@pytest.mark.parametrize(
    ("attempts", "gone"),
    [
        ([], []),
        ([(A, REFUSED), (B, GAVE_UP), (C, MOVED)], [A, B, C]),
        ([(A, REFUSED), (B, REFUSED | {"run_s": 100.0}), (C, MOVED)], [B, C]),  # it trained in B: A is forgotten
        ([(A, REFUSED | {"run_s": 100.0})], [A]),
        ([(A, REFUSED), (B, {"end": AttemptEnd.SERVICE_FAULT}), (C, MOVED)], [C]),
        ([(A, MOVED | {"end": AttemptEnd.COMPLETED})], []),  # it ended before the stop reached it
    ],
)
def test_which_pools_capacity_made_a_trial_leave(attempts, gone):
    assert placement.left([ended(pool, **changes) for pool, changes in attempts]) == gone


@pytest.mark.parametrize(
    ("totals", "slowness"),
    [
        # an hour of training, with the first wait and those after its interruptions
        (PoolTotals(), 1 + (1 + 0.1) * 300 / 3600),
        (PoolTotals(attempts=8, wait_s=5400.0, up_s=7200.0), 1 + (1 + 0.05) * 600 / 3600),
        (PoolTotals(attempts=4, interruptions=4, wait_s=5400.0, up_s=7200.0), 1 + (1 + 1.05) * 600 / 3600),
    ],
)
def test_how_slow_a_pool_is(totals, slowness):
    assert PoolStats(totals=totals).slowness == pytest.approx(slowness)


def test_a_long_first_wait_alone_makes_a_pool_lose_its_place():
    """Nothing was ever interrupted there: only the wait before the training is long."""
    slow = PoolStats(totals=PoolTotals(attempts=98, wait_s=100 * 3600.0, up_s=1e9))
    assert placement.choose_pool([], RULES, snapshot(stats={A: slow}), on_demand=False) == B


def test_a_pool_is_dry_while_one_waits_or_has_just_lost_something():
    for stats, dry in (
        (PoolStats(waited_s=601.0), True),
        (PoolStats(waited_s=600.0), False),
        (PoolStats(lost_at=at(-599)), True),
        (PoolStats(lost_at=at(-600)), False),
        (PoolStats(lost_at=NOW, waited_s=601.0, up=1), False),
    ):
        assert stats.dry(NOW) is dry


# --- spot or on demand

CLOSED = {(pool.instance_type, False): Limit(instances=0, learned_at=NOW) for pool in (A, B, C)}


@pytest.mark.parametrize(
    ("rules", "attempts", "known", "expected"),
    [
        ({"spot": False}, [], {}, True),
        ({}, [REFUSED] * 9, {"no_progress": True}, False),  # the study file does not allow it
        ({"on_demand_after": 3}, [REFUSED, GAVE_UP], {}, False),
        ({"on_demand_after": 3}, [REFUSED, GAVE_UP, {"interruptions": 1}], {}, True),
        ({"on_demand_after": 3}, [{}], {"no_progress": True}, True),
        ({"on_demand_after": 3}, [{"spot": False}], {}, True),  # and then for the rest of the trial
        ({"on_demand_after": 3}, [REFUSED] * 3, {"limits": CLOSED}, False),
        ({"spot": False}, [], {"limits": CLOSED}, True),
    ],
)
def test_when_the_next_attempt_is_on_demand(rules, attempts, known, expected):
    made = [attempt(**changes) for changes in attempts]
    snap = snapshot(limits=known.get("limits", {}))
    no_progress = known.get("no_progress", False)
    assert placement.next_on_demand(made, replace(RULES, **rules), snap, no_progress=no_progress) is expected


# --- an attempt that a quota keeps waiting


@pytest.mark.parametrize(
    ("here", "on_demand", "closed", "expected"),
    [
        (A, False, [], B),
        (A, False, [B], C),
        (A, False, [B, C], None),
        (A, True, [], None),  # never from spot to on demand
        (Pool("ml.a.large", spot=False), False, [], A),
    ],
)
def test_where_else_an_attempt_without_a_job_may_go(here, on_demand, closed, expected):
    limits = {kind_of(pool): Limit(instances=0, learned_at=NOW) for pool in closed}
    pool = placement.choose_other_pool(
        [waiting(here)], RULES, snapshot(limits=limits), on_demand=on_demand, pays=lambda _pool: True
    )
    assert pool == expected


def test_an_attempt_goes_only_where_the_budget_lets_it():
    pool = placement.choose_other_pool([waiting(A)], RULES, snapshot(), on_demand=False, pays=lambda pool: pool == C)
    assert pool == C


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (MOVED | {"stop_wanted_at": at(5), "ended_at": at(9)}, at(5)),
        (REFUSED | {"ended_at": at(9)}, at(9)),
        (GAVE_UP | {"ended_at": at(9)}, at(9)),
        ({"end": AttemptEnd.COMPLETED, "ended_at": at(9)}, None),
        ({"end": AttemptEnd.STOPPED, "stop_reason": StopReason.USER, "stop_wanted_at": at(5)}, None),
    ],
)
def test_when_capacity_took_the_place_of_an_ended_attempt(changes, expected):
    assert placement.lost_at(attempt(**changes)) == expected


# --- moving


def job(number, since_s, pays=lambda _pool: True):
    return WaitingJob(number, [waiting(A)], at(-since_s), pays)


def test_one_trial_moves_at_a_time_to_a_pool_where_nothing_is_up_and_the_longest_waiting_is_first():
    known = snapshot()
    assert placement.moves([job(1, 700.0), job(2, 900.0), job(3, 800.0)], RULES, known) == [(2, B)]
    assert (known.movers, known.attempts) == (1, Counter({kind_of(B): 1}))


def test_as_many_move_as_there_is_room_where_something_is_up():
    up = {B: PoolStats(up=1), C: PoolStats(lost_at=NOW)}
    known = snapshot(stats=up, limits={kind_of(B): Limit(instances=2, learned_at=NOW)})
    assert placement.moves([job(number, 900.0) for number in (3, 1, 2)], RULES, known) == [(1, B), (2, B)]


def test_a_trial_moves_only_where_the_budget_lets_it():
    assert placement.moves([job(1, 900.0, lambda _pool: False), job(2, 700.0)], RULES, snapshot()) == [(2, B)]


@pytest.mark.parametrize(
    ("waits_s", "rules", "intent", "expected"),
    [
        ([600.0], RULES, Intent.RUN, True),
        ([599.0], RULES, Intent.RUN, False),
        ([10.0, 600.0], RULES, Intent.RUN, True),
        ([], RULES, Intent.RUN, False),
        ([600.0], RULES, Intent.DRAIN, False),
        ([600.0], replace(RULES, instance_types=RULES.instance_types[:1]), Intent.RUN, False),
    ],
)
def test_when_moves_are_considered(waits_s, rules, intent, expected):
    jobs = [job(number, waited_s) for number, waited_s in enumerate(waits_s)]
    assert placement.may_move(jobs, rules, intent, NOW) is expected


def test_a_waiting_job_is_looked_at_again_after_each_patience():
    patience = timedelta(seconds=placement.PATIENCE_S)
    for waited_s, patiences in ((0.0, 1), (599.0, 1), (600.0, 2), (1300.0, 3)):
        since = at(-waited_s)
        assert placement.look_again_at(since, RULES, NOW) == since + patiences * patience
    assert placement.look_again_at(None, RULES, NOW) is None
    assert placement.look_again_at(NOW, replace(RULES, instance_types=RULES.instance_types[:1]), NOW) is None
