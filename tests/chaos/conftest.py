"""A working directory in which things are destroyed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_desk import ChaosDesk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[ChaosDesk]:
    desk = ChaosDesk(tmp_path)
    yield desk
    desk.kill_everything()
