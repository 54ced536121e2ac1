"""A store of each kind per test."""

from collections.abc import Iterator

import pytest
from store_records import Bench, bench

from tuner.store.store import Store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store.open(store_url)
    yield opened
    opened.close()


@pytest.fixture
def desk(store: Store) -> Bench:
    return bench(store)
