"""Placement, pure: what may never happen whatever is known, and a few cases that say what is meant."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import factories
from tuner.core.policy import placement
from tuner.core.policy.placement import CapacitySnapshot, Limit, PoolStats, kind_of
from tuner.core.policy.settings import Policy
from tuner.core.records import Attempt, AttemptEnd, AttemptState, Pool, PoolTotals, StopReason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = ("ml.a.large", "ml.b.large", "ml.c.large")
A, B, C = (Pool(name, spot=True) for name in TYPES)


def policy(*, types=TYPES, **changes) -> Policy:
    return factories.policy(**{"parallel": 4, "instance_types": types, **changes})


def attempt(number: int, pool: Pool, **changes) -> Attempt:
    """In this pool: ended if it has an end, else waiting."""
    in_pool = {"instance_type": pool.instance_type, "spot": pool.spot, "zone": pool.zone}
    state = AttemptState.ENDED if "end" in changes else AttemptState.WAITING
    given = {"state": state, "rate_microusd_per_h": 1_000_000, "created_at": NOW, "submitted_at": NOW}
    return factories.attempt(0, number, **{**given, **in_pool, **changes})


def snapshot(**changes) -> CapacitySnapshot:
    return CapacitySnapshot(**{"now": NOW, "instance_count": 1} | changes)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def told(instances: int, seconds_ago: float = 0.0) -> Limit:
    return Limit(instances=instances, learned_at=ago(seconds_ago))


# --- what is drawn

policies = st.builds(
    policy,
    types=st.sampled_from([TYPES, TYPES[:2], TYPES[:1]]),
    spot=st.booleans(),
    on_demand_after=st.sampled_from([None, 1, 3]),
    zones=st.sampled_from([(None,), ("z1", "z2")]),
    instance_count=st.integers(1, 3),
)
ends = st.sampled_from([
    {"end": AttemptEnd.MAX_WAIT},
    {"end": AttemptEnd.CAPACITY},
    {"end": AttemptEnd.STOPPED, "stop_reason": StopReason.MOVE},
    {"end": AttemptEnd.STOPPED, "stop_reason": StopReason.USER},
    {"end": AttemptEnd.SERVICE_FAULT},
])  # fmt: skip
stats = st.builds(
    PoolStats,
    totals=st.builds(
        PoolTotals,
        attempts=st.integers(0, 50),
        interruptions=st.integers(0, 50),
        up_s=st.floats(0, 1e6),
        wait_s=st.floats(0, 1e6),
    ),
    up=st.integers(0, 3),
    waiting=st.integers(0, 3),
    waited_s=st.floats(0, 5000),
    lost_at=st.none() | st.floats(0, 5000).map(ago),
)


@st.composite
def worlds(draw):
    """A policy, a trial's attempts, and what is known of the pools."""
    rules = draw(policies)
    pools = [*placement.listed(rules, spot=True), *placement.listed(rules, spot=False)]
    history = draw(st.lists(st.tuples(st.sampled_from(pools), ends, st.sampled_from([0.0, 60.0])), max_size=6))
    attempts = [attempt(n, pool, run_s=run_s, **end) for n, (pool, end, run_s) in enumerate(history, start=1)]
    kinds = sorted({kind_of(pool) for pool in pools})
    known = snapshot(
        instance_count=rules.instance_count,
        stats={pool: draw(stats) for pool in pools},
        limits={
            kind: draw(st.builds(told, st.integers(0, 6), st.floats(0, 4000))) for kind in kinds if draw(st.booleans())
        },
        attempts=Counter({kind: draw(st.integers(0, 4)) for kind in kinds}),
        movers=draw(st.integers(0, 2)),
    )
    return rules, attempts, known


@given(worlds(), st.booleans())
def test_a_place_is_listed_has_room_and_is_on_demand_only_as_asked(world, on_demand):
    rules, attempts, known = world
    pool = placement.choose_pool(attempts, rules, known, on_demand=on_demand)
    listed = placement.listed(rules, spot=not on_demand)
    shut = [each for each in listed if known.closed(kind_of(each))]
    if pool is None:
        assert not any(known.has_room(kind_of(each), known.attempts) for each in listed if each not in shut)
        return
    assert pool in listed
    assert pool not in shut or len(shut) == len(listed)
    limit = known.limits.get(kind_of(pool))
    if limit is not None and pool not in shut and limit.believed_until(NOW):
        assert (known.attempts[kind_of(pool)] + 1) * rules.instance_count <= limit.instances


@given(worlds())
def test_what_has_just_refused_is_not_asked_again(world):
    rules, attempts, known = world
    for refused in placement.listed(rules, spot=True):
        pool = placement.choose_pool(attempts, rules, known, on_demand=False, without=kind_of(refused))
        assert pool is None or pool.instance_type != refused.instance_type


@given(worlds())
def test_nobody_comes_back_before_the_others_were_tried(world):
    rules, attempts, known = world
    pool = placement.choose_pool(attempts, rules, known, on_demand=False)
    gone = placement.left(attempts)
    if pool in gone:
        free = {
            each
            for each in placement.listed(rules, spot=True)
            if known.has_room(kind_of(each), known.attempts)
            and known.closed(kind_of(each)) == known.closed(kind_of(pool))
        }
        assert free <= set(gone)
        # the one that was left longest ago
        last = {each: max(i for i, other in enumerate(gone) if other == each) for each in free}
        assert last[pool] == min(last.values())


@given(worlds(), st.floats(0, 1e5))
def test_a_move_leads_elsewhere_on_spot_and_never_soon(world, waited_s):
    rules, attempts, known = world
    pools = placement.listed(rules, spot=True)
    here = attempt(len(attempts) + 1, pools[0])
    pool = placement.elsewhere([*attempts, here], rules, known, ago(waited_s))
    if pool is None:
        return
    assert pool in pools
    assert pool != here.pool
    assert waited_s >= placement.PATIENCE_S * 2 ** min(6, len(placement.left(attempts)))
    stats_of = known.stats_of(pool)
    assert not stats_of.dry(NOW)
    if not stats_of.up:
        assert known.movers == stats_of.waiting == 0
        assert stats_of.lost_at is None or stats_of.lost_at < ago(waited_s)


@given(worlds(), st.booleans())
def test_on_demand_only_where_the_study_file_allows_it(world, no_progress):
    rules, attempts, _ = world
    yes = placement.goes_on_demand(attempts, rules, no_progress=no_progress)
    if not rules.spot:
        assert yes
    elif rules.on_demand_after is None:
        assert not yes
    else:
        assert yes or placement.losses(attempts) < rules.on_demand_after


@given(st.lists(stats, min_size=1, max_size=4))
def test_estimates_stay_between_what_was_met_and_what_is_assumed(found):
    for stats_of in found:
        totals = stats_of.totals
        assert stats_of.slowness > 1
        if totals.up_s > 0:
            met = 3600 * totals.interruptions / totals.up_s
            assert min(met, 0.1) - 1e-9 <= stats_of.interruptions_per_h <= max(met, 0.1) + 1e-9
        if totals.waits:
            met = totals.wait_s / totals.waits
            assert min(met, 300) - 1e-6 <= stats_of.wait_s <= max(met, 300) + 1e-6


# --- cases


def known_as(interruptions: int, up_h: float, waits: int, wait_min: float) -> PoolStats:
    return PoolStats(
        totals=PoolTotals(
            attempts=waits - interruptions, interruptions=interruptions, up_s=up_h * 3600, wait_s=waits * wait_min * 60
        )
    )


def test_the_order_of_the_study_file_decides_between_pools_that_are_unknown_or_equal():
    assert placement.choose_pool([], policy(), snapshot(), on_demand=False) == A
    equal = snapshot(stats={A: known_as(10, 100, 20, 10), B: known_as(8, 100, 20, 8)})
    assert placement.choose_pool([], policy(), equal, on_demand=False) == A


def test_a_pool_that_is_much_slower_loses_its_place_to_one_that_is_not_known():
    bad = snapshot(stats={A: known_as(30, 10, 40, 60)})
    assert placement.choose_pool([], policy(), bad, on_demand=False) == B


def test_one_bad_hour_condemns_no_pool():
    assert placement.choose_pool([], policy(), snapshot(stats={A: known_as(2, 1, 3, 10)}), on_demand=False) == A


def test_a_dry_pool_is_passed_over_until_something_of_ours_is_up_there():
    dry = PoolStats(waiting=1, waited_s=1000.0, lost_at=ago(1000))
    assert placement.choose_pool([], policy(), snapshot(stats={A: dry}), on_demand=False) == B
    up = PoolStats(waiting=1, waited_s=1000.0, lost_at=ago(1000), up=1)
    assert placement.choose_pool([], policy(), snapshot(stats={A: up}), on_demand=False) == A
    assert placement.choose_pool([], policy(types=TYPES[:1]), snapshot(stats={A: dry}), on_demand=False) == A


def test_each_end_for_want_of_capacity_leads_to_the_next_pool_and_round():
    attempts: list[Attempt] = []
    for number, due in enumerate([A, B, C, A, B], start=1):
        pool = placement.choose_pool(attempts, policy(), snapshot(), on_demand=False)
        assert pool == due
        attempts.append(attempt(number, pool, end=AttemptEnd.CAPACITY))


@pytest.mark.parametrize("end", [AttemptEnd.SERVICE_FAULT, AttemptEnd.STOPPED])
def test_other_ends_lead_nowhere(end):
    assert placement.choose_pool([attempt(1, A, end=end)], policy(), snapshot(), on_demand=False) == A


def test_a_limit_is_believed_for_half_an_hour_and_none_at_all_for_good():
    for limit, due in ((told(1, 60), B), (told(1, 1801), A), (told(0, 9999), B)):
        known = snapshot(limits={kind_of(A): limit}, attempts=Counter({kind_of(A): 1}))
        assert placement.choose_pool([], policy(), known, on_demand=False) == due


def test_a_quota_counts_instances_and_spot_apart():
    known = snapshot(instance_count=2, limits={kind_of(A): told(3)}, attempts=Counter({kind_of(A): 1}))
    rules = policy(types=TYPES[:1], instance_count=2)
    assert placement.choose_pool([], rules, known, on_demand=False) is None
    assert placement.choose_pool([], rules, known, on_demand=True) == Pool(TYPES[0], spot=False)


def test_zones_of_the_first_type_come_before_the_second_type():
    rules = policy(types=TYPES[:2], zones=("z1", "z2"))
    assert [(pool.instance_type, pool.zone) for pool in placement.listed(rules, spot=True)] == [
        (TYPES[0], "z1"),
        (TYPES[0], "z2"),
        (TYPES[1], "z1"),
        (TYPES[1], "z2"),
    ]


def test_moves_of_a_trial_that_does_not_train_wait_twice_as_long_each_time():
    moved = [attempt(1, A, end=AttemptEnd.STOPPED, stop_reason=StopReason.MOVE)]
    waits = [*moved, attempt(2, B)]
    assert placement.elsewhere(waits, policy(), snapshot(), ago(1199)) is None
    assert placement.elsewhere(waits, policy(), snapshot(), ago(1200)) == C
    trained = [attempt(1, A, end=AttemptEnd.STOPPED, stop_reason=StopReason.USER), attempt(2, B)]
    assert placement.elsewhere(trained, policy(), snapshot(), ago(600)) == A


def test_nobody_moves_where_it_is_expected_to_wait_longer_than_it_has():
    slow = snapshot(stats={B: known_as(0, 100, 50, 60), C: known_as(0, 100, 50, 60)})
    assert placement.elsewhere([attempt(1, A)], policy(), slow, ago(6000)) is None
    assert placement.elsewhere([attempt(1, A)], policy(), slow, ago(7200)) == B


def test_a_pool_says_what_it_is():
    assert [str(pool) for pool in (A, Pool("t", spot=False), Pool("t", spot=True, zone="z"))] == [
        "ml.a.large spot",
        "t on-demand",
        "t spot z",
    ]
