"""The container is a fixture here; its class and helpers stand in `training_container`."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_container import Container


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    container = Container(tmp_path)
    yield container
    container.close()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on; somebody may take it before it is used, but not twice in a row."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
