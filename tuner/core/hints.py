"""What says that a job may have changed: the port between the engine and the account's events.

Rules: hints are only hints. They may be missing, late, doubled and out of order.
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
    """Where hints come from."""

    def receive(self) -> Iterable[Hint]:
        """Those that came since, about jobs of this study; does not wait. Raises JobError."""
        ...
