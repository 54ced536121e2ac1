"""What the benchmarks count: processor time of this process, SQL statements, and requests to the job service."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import botocore.client
import sqlalchemy as sa


@dataclass(slots=True)
class Measure:
    """Filled in when the block under `measured` ends."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    statements: int = 0  # SQL, without BEGIN and COMMIT
    transactions: int = 0  # commits


@contextmanager
def measured() -> Iterator[Measure]:
    """Count what one block costs. Processor time is this process's own, without its children."""
    found = Measure()

    def statement(*_args: object) -> None:
        found.statements += 1

    def commit(*_args: object) -> None:
        found.transactions += 1

    hooks = (("before_cursor_execute", statement), ("commit", commit))
    for name, hook in hooks:
        sa.event.listen(sa.Engine, name, hook)
    cpu, wall = time.process_time(), time.monotonic()
    try:
        yield found
    finally:
        found.cpu_s, found.wall_s = time.process_time() - cpu, time.monotonic() - wall
        for name, hook in hooks:
            sa.event.remove(sa.Engine, name, hook)


@contextmanager
def api_calls() -> Iterator[Counter[str]]:
    """Count the requests of every boto3 client by operation."""
    calls: Counter[str] = Counter()
    inner = botocore.client.BaseClient._make_api_call

    def counting(self, operation: str, arguments: dict):
        calls[operation] += 1
        return inner(self, operation, arguments)

    botocore.client.BaseClient._make_api_call = counting
    try:
        yield calls
    finally:
        botocore.client.BaseClient._make_api_call = inner
