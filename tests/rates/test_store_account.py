"""What the studies of an account share, on both databases: call budgets first of all."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tuner.core.clock import SystemClock
from tuner.core.records import CallRate, Draw, Fact, ListedPrice
from tuner.store.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCOPE, OTHER = "123456789012/us-east-1", "123456789012/eu-west-1"
RATE = CallRate(per_s=2.0, burst=20.0)
# so slow that nothing fills while a test runs, however slow the machine is
STILL = CallRate(per_s=1e-9, burst=20.0)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(Store.open(store_url)) as opened:
        yield opened


@pytest.fixture
def on_file(sqlite_url: str) -> Iterator[Store]:
    """SQLite's, whose buckets fill by the time that they are told."""
    with closing(Store.open(sqlite_url)) as opened:
        yield opened


def take(store: Store, wanted: int, after_s: float = 0.0, rate: CallRate = RATE, **options: int) -> int:
    now = NOW + timedelta(seconds=after_s)
    return store.take_calls(SCOPE, "Describe", rate, Draw(wanted=wanted, **options), now=now)


# --- on both databases


def test_a_new_bucket_is_full_and_gives_no_more_than_it_has(store: Store) -> None:
    assert [take(store, 15, rate=STILL), take(store, 15, rate=STILL), take(store, 15, rate=STILL)] == [15, 5, 0]


def test_each_operation_and_each_scope_has_its_own(store: Store) -> None:
    for scope, operation in ((SCOPE, "Describe"), (SCOPE, "Stop"), (OTHER, "Describe")):
        assert store.take_calls(scope, operation, STILL, Draw(wanted=99), now=NOW) == 20


def test_some_are_left_for_what_matters_more(store: Store) -> None:
    assert take(store, 99, rate=STILL, spare=8) == 12
    assert take(store, 99, rate=STILL, spare=8) == 0
    assert take(store, 99, rate=STILL) == 8


def test_calls_that_were_not_made_are_given_back_but_never_above_the_burst(store: Store) -> None:
    assert take(store, 20, rate=STILL) == 20
    assert take(store, 99, rate=STILL, back=6) == 6
    assert take(store, 99, rate=STILL, back=500) == 20


def test_all_or_nothing(store: Store) -> None:
    assert take(store, 21, rate=STILL, at_least=21) == 0
    assert take(store, 20, rate=STILL, at_least=20) == 20


def test_what_can_wait_comes_out_of_the_upper_half(store: Store) -> None:
    assert take(store, 3, rate=STILL, idle=4) == 7
    assert take(store, 1, rate=STILL, idle=9) == 3  # 10 of 20 stay
    assert take(store, 6, rate=STILL, idle=9) == 6


def test_engines_that_share_leave_each_other_something(store: Store) -> None:
    assert [take(store, 99, rate=STILL, idle=99, engines=3) for _ in range(4)] == [7, 5, 3, 2]


def test_a_lower_burst_counts_at_once(store: Store) -> None:
    take(store, 0, rate=STILL)
    assert take(store, 99, rate=replace(STILL, burst=3.0)) == 3


def test_engines_that_take_at_the_same_time_share_one_bucket(store_url: str) -> None:
    """Each with a connection of its own, as on hosts of their own, and each with a clock of its own."""
    taken: list[int] = []
    start = threading.Barrier(4)

    def engine(skew_h: int) -> None:
        with closing(Store.open(store_url)) as store:
            start.wait(60)
            taken.extend(take(store, 3, skew_h * 3600.0, rate=STILL) for _ in range(5))

    threads = [threading.Thread(target=engine, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), sum(taken)) == (20, 20)


def test_facts_are_known_by_name_and_replaced(store: Store) -> None:
    fact = Fact(scope=SCOPE, name="sync_s", value={"seconds": 1.5}, learned_at=NOW, source="first dollar")
    later = replace(fact, value=2, learned_at=NOW + timedelta(days=1))
    store.put_fact(fact)
    store.put_fact(replace(fact, name="a", value=[None, "x"]))
    store.put_fact(replace(fact, scope=OTHER))
    assert store.facts(SCOPE) == [replace(fact, name="a", value=[None, "x"]), fact]
    store.put_fact(later)
    assert store.facts(SCOPE)[1] == later
    store.forget_fact(SCOPE, "sync_s")
    store.forget_fact(SCOPE, "never known")
    assert [known.name for known in store.facts(SCOPE)] == ["a"]
    assert store.facts(OTHER) == [replace(fact, scope=OTHER)]


def test_prices_are_kept_to_the_last_digit(store: Store) -> None:
    price = ListedPrice(
        region="us-east-1", instance_type="ml.g5.xlarge", usd_per_hour=Decimal("1.4080000000"), as_of="", fetched_at=NOW
    )
    small = replace(price, instance_type="ml.a", usd_per_hour=Decimal("1E-7"))
    store.put_prices([])
    store.put_prices([price, small, replace(price, region="eu-west-1")])
    assert store.prices("us-east-1") == [small, price]
    assert str(store.prices("us-east-1")[1].usd_per_hour) == "1.4080000000"
    newer = replace(price, usd_per_hour=Decimal("1.2"), fetched_at=NOW + timedelta(days=8))
    store.put_prices([newer])
    assert store.prices("us-east-1") == [small, newer]


# --- by the host's clock


def test_a_bucket_fills_at_its_rate_up_to_its_burst(on_file: Store) -> None:
    assert take(on_file, 99) == 20
    assert take(on_file, 99, after_s=2.25) == 4
    assert take(on_file, 99, after_s=2.5) == 1  # the half that was left, and the half that came since
    assert take(on_file, 99, after_s=3600) == 20


def test_a_clock_that_was_set_back_stalls_nobody_and_gives_nothing(on_file: Store) -> None:
    assert take(on_file, 99, after_s=3600) == 20
    assert take(on_file, 99) == 0
    assert take(on_file, 99, after_s=2) == 4


# --- by the server's clock


def test_hosts_whose_clocks_differ_fill_a_bucket_once(postgres_url: str) -> None:
    """By the hosts' clocks, an hour apart, every other call would find the bucket full."""
    clock, rate = SystemClock(), CallRate(per_s=0.01, burst=20.0)
    with closing(Store.open(postgres_url)) as store:
        began = clock.now()
        taken = sum(take(store, 99, after_s=3600.0 * (n % 2), rate=rate) for n in range(20))
        passed_s = (clock.now() - began).total_seconds()
    assert 20 <= taken <= 20 + 0.01 * passed_s + 1


def test_a_bucket_fills_by_the_servers_clock(postgres_url: str) -> None:
    with closing(Store.open(postgres_url)) as store:
        assert take(store, 20) == 20
        deadline = SystemClock().now() + timedelta(seconds=60)
        while take(store, 1) == 0:
            assert SystemClock().now() < deadline
