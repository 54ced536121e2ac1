"""The container is a fixture here; its class and helpers stand in `training_container`."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
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
    """A port that nobody listens on, and that the system gives to nobody: it is below the ephemeral ports.

    Other workers begin their search elsewhere.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in (*range(first - 1 - os.getpid() % (first // 2), 1024, -1), 0):  # any, where it gives all of them
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    raise AssertionError("no port is free")
