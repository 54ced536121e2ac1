"""The port between the engine and the events of the account: hints that a job may have changed.

Rules: hints may be missing, late, repeated and out of order. So nothing depends on them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Hint:
    """A job may have changed, at this moment if it is known."""

    name: str
    modified_at: datetime | None = None


class Hints(Protocol):
    """A source of hints."""

    def receive(self) -> Iterable[Hint]:
        """New hints about jobs of this study; does not wait. Raises JobError."""
        ...
