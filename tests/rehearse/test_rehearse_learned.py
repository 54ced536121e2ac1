"""Rates that a store has learned: of jobs on AWS only, and of enough hours."""

from dataclasses import replace
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest

from tests import factories
from tuner.cli import rehearse
from tuner.core.records import Pool, PoolTotals, StudyState
from tuner.store.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOCAL = factories.study("here", key="here-bcdfgh", state=StudyState.FINISHED, created_at=NOW)


def test_rates_come_from_studies_on_aws_with_hours_enough(sqlite_url):
    store = Store.open(sqlite_url)
    store.create_study(LOCAL)
    cloud = store.create_study(replace(LOCAL, name="there", key="there-bcdfgh", backend="sagemaker"))
    asked = []

    def pool_totals(studies):
        asked.append(list(studies))
        hours = 3600.0
        return {
            Pool("ml.g5.xlarge", spot=True, zone="a"): PoolTotals(interruptions=30, up_s=60 * hours),
            Pool("ml.g5.xlarge", spot=True, zone="b"): PoolTotals(interruptions=20, up_s=40 * hours),
            Pool("ml.g5.xlarge", spot=False): PoolTotals(up_s=1000 * hours),
            Pool("ml.m5.large", spot=True): PoolTotals(interruptions=9, up_s=9 * hours),
        }

    rates = rehearse.rates_seen(Mock(studies=store.studies, pool_totals=pool_totals))
    store.close()
    assert asked == [[cloud.id]]
    assert rates == {"ml.g5.xlarge": pytest.approx(0.5, rel=0.03)}  # shrunk a little towards what is usual


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    assert rehearse.learned_rates(f"sqlite:///{tmp_path}/none.db") == {}
    assert list(tmp_path.iterdir()) == []
