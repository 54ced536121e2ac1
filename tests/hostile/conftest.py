"""The worlds of other tests, for guests who mean harm."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endtoend.conftest import Desk
from tests.local.local_world import LocalWorld
from tests.training.training_container import Container


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.kill_everything()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LocalWorld]:
    made = LocalWorld(tmp_path / "state")
    yield made
    made.leave_nothing()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    container = Container(tmp_path)
    yield container
    container.close()
