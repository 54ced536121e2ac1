"""The builders of the store's tests, for a store on PostgreSQL."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner.store.store import Store

sys.path.append(str(Path(__file__).parents[1] / "store"))


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    opened = Store.open(postgres_url)
    yield opened
    opened.close()
