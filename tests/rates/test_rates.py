"""An engine's share of the calls: leases, what is given back, lists by their pages, and who waits."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from unittest.mock import Mock

import pytest

from tests.benchmarks.measures import measured
from tests.factories import job_request
from tuner.aws.rates import RATES, RATES_FACT, RateLimited, RetryingJobService, SharedCalls, rates_within, scope
from tuner.core.calls import Call, OutOfCalls
from tuner.core.clock import VirtualClock
from tuner.core.jobs import JobNotFound, ServiceUnavailable, Throttled
from tuner.core.records import CallRate, Fact
from tuner.sagemaker.service import SageMakerJobs
from tuner.simulator.cloud import SimulatedCloud
from tuner.store.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCOPE = scope("123456789012", "us-east-1")
RATE = {call: CallRate(per_s=1.0, burst=10.0) for call in Call}


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    with closing(Store.open(sqlite_url)) as opened:
        yield opened


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(NOW)


@pytest.fixture
def calls(store: Store, clock: VirtualClock) -> SharedCalls:
    return SharedCalls(store, SCOPE, clock, RATE)


def spent(calls: SharedCalls, call: Call, tries: int) -> int:
    """How many of the tried calls could be made."""
    done = 0
    for _ in range(tries):
        try:
            calls.spend(call)
        except OutOfCalls:
            continue
        done += 1
    return done


def pass_s(clock: VirtualClock, seconds: float) -> None:
    clock.wait(clock.now() + timedelta(seconds=seconds), due=clock.now())


def test_the_default_rates_are_those_of_the_documentation() -> None:
    assert {call: rate.per_s for call, rate in RATES.items()} == {
        Call.CREATE: 1.0,
        Call.DESCRIBE: 5.0,
        Call.LIST: 2.0,
        Call.STOP: 2.0,
    }
    assert all(rate.burst == 30 * rate.per_s for rate in RATES.values())


def quotas(value: object) -> list[Fact]:
    return [Fact(scope=SCOPE, name=RATES_FACT, value=value, learned_at=NOW, source="first dollar")]


def test_known_quotas_lower_the_rates_and_never_raise_them() -> None:
    found = rates_within(quotas({"CreateTrainingJob": 0.5, "DescribeTrainingJob": 80, "StopTrainingJob": 0}))
    assert found == {**RATES, Call.CREATE: CallRate(per_s=0.5, burst=15.0)}
    assert rates_within(quotas("what")) == rates_within(quotas({"CreateTrainingJob": "3"})) == RATES


def test_the_user_may_know_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_CALLS", "CreateTrainingJob=3, DescribeTrainingJob=0.01")
    assert rates_within(quotas({"CreateTrainingJob": 0.5})) == {
        **RATES,
        Call.CREATE: CallRate(per_s=3.0, burst=90.0),
        Call.DESCRIBE: CallRate(per_s=0.01, burst=1.0),
    }


@pytest.mark.parametrize("text", ["CreateTrainingJob", "Create=3", "StopTrainingJob=0", "StopTrainingJob=nan", "="])
def test_a_wish_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNER_CALLS", text)
    with pytest.raises(ValueError, match=f"TUNER_CALLS: '{text}' is not CALL=NUMBER"):
        rates_within([])


def test_a_tick_takes_what_it_needs_in_one_transaction(calls: SharedCalls) -> None:
    assert calls.may(Call.STOP, 1) == 1  # counts the engines, as once a minute
    with measured() as cost:
        assert calls.may(Call.CREATE, 7) == 7
        assert spent(calls, Call.CREATE, 7) == 7
    assert cost.transactions == 1


def test_what_was_not_used_is_given_back_next_time(calls: SharedCalls, store: Store, clock: VirtualClock) -> None:
    other = SharedCalls(store, SCOPE, clock, RATE)
    assert calls.may(Call.CREATE, 10) == 10
    assert other.may(Call.CREATE, 10) == 0
    assert spent(calls, Call.CREATE, 4) == 4
    assert calls.may(Call.CREATE, 1) == 1
    assert other.may(Call.CREATE, 10) == 5


def test_a_call_that_nobody_foresaw_takes_its_own(calls: SharedCalls) -> None:
    assert spent(calls, Call.STOP, 30) == 10


def test_an_empty_bucket_is_not_asked_again_at_once(calls: SharedCalls, clock: VirtualClock) -> None:
    assert calls.may(Call.STOP, 50) == 10
    assert spent(calls, Call.STOP, 10) == 10
    with measured() as cost:
        assert spent(calls, Call.STOP, 1000) == 0
    assert cost.transactions == 0
    pass_s(clock, 1)
    assert spent(calls, Call.STOP, 5) == 1


def test_the_refusal_says_what_is_used_up(calls: SharedCalls) -> None:
    calls.may(Call.STOP, 50)
    spent(calls, Call.STOP, 10)
    with pytest.raises(OutOfCalls, match="StopTrainingJob: the 1 calls a second of 123456789012/us-east-1 are used up"):
        calls.spend(Call.STOP)


def test_describing_leaves_a_call_for_finding_out(calls: SharedCalls) -> None:
    """A create that finds its name taken asks whose job it is, after the round of describing."""
    assert calls.may(Call.DESCRIBE, 50) == 9
    assert spent(calls, Call.DESCRIBE, 9) == 9
    assert spent(calls, Call.DESCRIBE, 5) == 1


def test_engines_are_counted_and_leave_each_other_something(store: Store, clock: VirtualClock) -> None:
    three = [SharedCalls(store, SCOPE, clock, RATE) for _ in range(3)]
    for each in three:
        each._store = _Engines(store, 3)
    assert [each.may(Call.CREATE, 50) for each in three] == [4, 2, 2]


class _Engines:
    def __init__(self, store: Store, engines: int) -> None:
        self.take_calls, self._engines = store.take_calls, engines

    def engines(self, _backend: str, _now: datetime) -> int:
        return self._engines


# --- lists


def list_of(calls: SharedCalls, pages: int) -> bool:
    """Whether a list of that number of pages was complete."""
    try:
        for _ in range(pages):
            calls.page()
    except OutOfCalls:
        return False
    return True


def test_a_list_waits_for_what_the_last_one_cost(calls: SharedCalls, clock: VirtualClock) -> None:
    """Five pages at half a call a second: one list in ten seconds."""
    assert calls.may_list()
    assert list_of(calls, 5)
    at = []
    while clock.now() < NOW + timedelta(seconds=31):
        pass_s(clock, 1)
        if calls.may_list():
            at.append((clock.now() - NOW).total_seconds())
            assert list_of(calls, 5)
    assert at == [10, 20, 30]


def test_a_list_is_begun_only_when_its_pages_are_there(calls: SharedCalls, store: Store, clock: VirtualClock) -> None:
    assert calls.may_list()
    assert list_of(calls, 6)
    pass_s(clock, 20)
    hungry = SharedCalls(store, SCOPE, clock, RATE)
    assert spent(hungry, Call.LIST, 5) == 5
    assert not calls.may_list()
    assert spent(hungry, Call.LIST, 9) == 5  # none was held back for the list that was not made
    pass_s(clock, 6)
    assert calls.may_list()
    assert list_of(calls, 6)


def test_a_list_that_was_cut_short_begins_with_more(calls: SharedCalls, store: Store, clock: VirtualClock) -> None:
    hungry = SharedCalls(store, SCOPE, clock, RATE)
    assert spent(hungry, Call.LIST, 9) == 9
    assert calls.may_list()
    calls.page()
    assert spent(hungry, Call.LIST, 1) == 0
    with pytest.raises(OutOfCalls):
        calls.page()
    begun = []
    while len(begun) < 2:
        pass_s(clock, 1)
        if calls.may_list():
            begun.append((clock.now() - NOW).total_seconds())
            # what it needs is held by now: others may be as hungry as they like
            pages = 4
            for _ in range(pages):
                spent(hungry, Call.LIST, 20)
                calls.page()
    assert begun[0] >= 4


def test_pages_keep_the_distance_that_aws_allows(store: Store, clock: VirtualClock) -> None:
    """Whatever burst our bucket holds: a service that holds none would refuse the list in the middle, every time."""
    calls = SharedCalls(store, SCOPE, clock, {**RATES, Call.LIST: CallRate(per_s=2.0, burst=60.0)})
    at: list[datetime] = []
    assert calls.may_list()
    for _ in range(10):
        calls.page()
        at.append(clock.now())
    assert {later - sooner for sooner, later in pairwise(at)} == {timedelta(seconds=0.5)}
    # a clock that is set back keeps nobody waiting
    clock.jump(timedelta(hours=-1))
    before = clock.now()
    calls.page()
    assert clock.now() == before


# --- in front of the port


def test_each_operation_is_counted_before_it_is_made(calls: SharedCalls, clock: VirtualClock) -> None:
    cloud = SimulatedCloud(clock, 1)
    jobs = RateLimited(cloud, calls)
    for number in range(12):
        if number < 10:
            jobs.create(job_request(f"s-{number}"))
        else:
            with pytest.raises(OutOfCalls):
                jobs.create(job_request(f"s-{number}"))
    for _ in range(10):
        jobs.describe("s-1")
        jobs.stop("s-1")
    for call in (jobs.describe, jobs.stop):
        with pytest.raises(OutOfCalls):
            call("s-1")
    for _ in range(10):
        assert len(jobs.list_changed("s-", created_after=NOW, modified_after=NOW)) == 10
    spent(calls, Call.LIST, 20)
    with pytest.raises(OutOfCalls):
        jobs.list_changed("s-", created_after=NOW, modified_after=NOW)
    assert cloud.calls == {"create": 10, "describe": 10, "stop": 10, "list": 10}


def test_who_has_no_next_tick_waits_for_its_turn(calls: SharedCalls, clock: VirtualClock) -> None:
    cloud = SimulatedCloud(clock, 1)
    jobs = RetryingJobService(RateLimited(cloud, calls), clock)
    for number in range(15):
        jobs.create(job_request(f"s-{number}"))
    assert 5 <= (clock.now() - NOW).total_seconds() <= 10
    cloud.fail_next("describe", Throttled("Rate exceeded"))
    assert jobs.describe("s-1").name == "s-1"
    assert len(jobs.list_changed("s-", created_after=NOW, modified_after=NOW)) == 15
    jobs.stop("s-1")
    with pytest.raises(JobNotFound):
        jobs.describe("s-99")


def test_it_does_not_wait_for_ever(clock: VirtualClock) -> None:
    cloud = SimulatedCloud(clock, 1)
    for _ in range(1000):
        cloud.fail_next("describe", Throttled("Rate exceeded"))
    with pytest.raises(Throttled):
        RetryingJobService(cloud, clock).describe("s-1")
    assert clock.now() - NOW < timedelta(minutes=5)


def test_what_stayed_without_an_answer_is_asked_again_but_no_job_is_made_twice(clock: VirtualClock) -> None:
    cloud = SimulatedCloud(clock, 1)
    jobs = RetryingJobService(cloud, clock)
    jobs.create(job_request("s-1"))
    for call, ask in (
        ("describe", lambda: jobs.describe("s-1")),
        ("stop", lambda: jobs.stop("s-1")),
        ("list", lambda: jobs.list_changed("s-", created_after=NOW, modified_after=NOW)),
    ):
        for _ in range(4):
            cloud.fail_next(call, ServiceUnavailable("no answer"))
        ask()
        for _ in range(5):
            cloud.fail_next(call, ServiceUnavailable("no answer"))
        with pytest.raises(ServiceUnavailable):
            ask()
    cloud.fail_next("create", ServiceUnavailable("no answer"))
    with pytest.raises(ServiceUnavailable):
        jobs.create(job_request("s-2"))
    with pytest.raises(JobNotFound):
        jobs.describe("s-2")


def test_each_further_page_of_a_list_is_a_call(calls: SharedCalls, store: Store, clock: VirtualClock) -> None:
    """The adapter pages inside one call of the port."""
    hungry = SharedCalls(store, SCOPE, clock, RATE)
    client = Mock(list_training_jobs=Mock(side_effect=_pages(30)))
    jobs = RateLimited(SageMakerJobs(client, next_page=calls.page), calls)
    jobs.list_changed("s-", created_after=NOW, modified_after=NOW)
    assert client.list_training_jobs.call_count == 31
    assert clock.now() - NOW >= timedelta(seconds=30 / RATE[Call.LIST].per_s)
    spent(hungry, Call.LIST, 20)
    with pytest.raises(OutOfCalls):
        jobs.list_changed("s-", created_after=NOW, modified_after=NOW)
    assert client.list_training_jobs.call_count == 31


def _pages(last: int) -> Iterator[dict]:
    for number in range(last):
        yield {"TrainingJobSummaries": [], "NextToken": str(number)}
    yield {"TrainingJobSummaries": []}
