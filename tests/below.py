"""Reading a folder in which a process is still tidying up: what goes meanwhile is passed over, as `rglob` does not."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every regular file below `folder` with what it holds."""
    for base, _, names in os.walk(folder):
        for path in (Path(base) / name for name in names):
            with suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()
