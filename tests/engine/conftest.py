"""One sweep per test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import Sweep


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Sweep]:
    made: list[Sweep] = []

    def make(**options) -> Sweep:
        made.append(Sweep(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for sweep in made:
        sweep.store.close()
