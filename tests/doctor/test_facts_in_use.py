"""What was found out about an account, in the engine's hands: it may make us more careful, never bolder."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.aws.aws_account import ACCOUNT, REGION, study_file
from tests.store import store_records as records
from tuner.aws import prepare
from tuner.aws.probe_findings import FACT_PREFIX
from tuner.aws.rates import RATES, RATES_FACT, rates_within
from tuner.core.calls import Call
from tuner.core.clock import SystemClock, VirtualClock
from tuner.core.records import AttemptState, Fact
from tuner.engine.live_trial import LiveTrial
from tuner.engine.liveness import SYNC_FACT, sync_delay_s, warnings
from tuner.spec.study_file import load
from tuner.spec.workload import policy
from tuner.store.store import Store

SCOPE = f"{ACCOUNT}/{REGION}"


def fact(name, value):
    return Fact(scope=SCOPE, name=name, value=value, learned_at=records.NOW, source="test")


def test_rates_are_lowered_to_the_account_s_and_never_raised():
    found = rates_within([fact(RATES_FACT, {"CreateTrainingJob": 0.5, "ListTrainingJobs": 100, "StopTrainingJob": 1})])
    assert (found[Call.CREATE].per_s, found[Call.CREATE].burst) == (0.5, 15)
    assert (found[Call.STOP].per_s, found[Call.STOP].burst) == (1, 30)
    assert found[Call.LIST] == RATES[Call.LIST]
    assert found[Call.DESCRIBE] == RATES[Call.DESCRIBE]


@pytest.mark.parametrize("value", [None, 3, "fast", {}, {"CreateTrainingJob": "x"}, {"CreateTrainingJob": 0}])
def test_a_fact_of_another_shape_changes_no_rate(value):
    assert rates_within([] if value is None else [fact(RATES_FACT, value)]) == RATES


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"max": 12.5}, 12.5), ({"max": -1}, 0), ({"median": 1}, 0), (7, 0), ({"max": "long"}, 0)],
)
def test_the_delay_of_the_sync_is_read_from_its_fact(value, expected):
    assert sync_delay_s([fact("other", 1), fact(SYNC_FACT, value)]) == expected
    assert sync_delay_s([]) == 0


def test_silence_is_no_sign_while_the_sync_is_known_to_be_slow(tmp_path):
    spec = load(study_file(tmp_path))
    attempt = records.attempt(state=AttemptState.TRAINING)
    trial = LiveTrial(records.trial(), [attempt], [records.run(started_at=records.NOW)])
    trial.unread = False
    rules, later = policy(spec, records.study()), records.NOW + timedelta(minutes=20)
    assert len(warnings([trial], rules, later)) == 1
    assert len(warnings([trial], rules, later, sync_delay_s=60)) == 1
    assert warnings([trial], rules, later, sync_delay_s=500) == []
    assert len(warnings([trial], rules, records.NOW + timedelta(minutes=26), sync_delay_s=500)) == 1


def test_an_engine_on_that_account_is_given_both(account, tmp_path, sqlite_url):
    account.quotas = {"ml.m5.large for spot training job usage": 4}
    store = Store.open(sqlite_url)
    store.put_fact(fact(SYNC_FACT, {"max": 42.0}))
    store.put_fact(fact(RATES_FACT, {"CreateTrainingJob": 0.25}))
    found = prepare.prepare(load(study_file(tmp_path)), account.aws(), store, SystemClock().now())
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    where = account.backends.on_aws(found.spec)
    given = where.services(records.study(), found.spec, store=store, clock=clock, listener=None)
    assert given.sync_delay_s == 42
    assert given.calls._rates[Call.CREATE].per_s == 0.25
    store.close()


def test_the_job_writes_the_facts_that_the_engine_reads():
    assert SYNC_FACT.startswith(FACT_PREFIX)
    assert RATES_FACT.startswith(FACT_PREFIX)
