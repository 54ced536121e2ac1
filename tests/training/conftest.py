"""The container is a fixture here; its class and helpers stand in `training_container`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from training_container import Container


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    container = Container(tmp_path)
    yield container
    container.close()
