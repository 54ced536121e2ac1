"""What will happen in a simulated cloud, in order of time.

Rules: events at the same moment happen in the order in which they were planned. An event of a job does not happen once
the job has ended, or once the job has lost the instances that the event was planned for.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from tuner.simulator.parts import SimulatedJob


@dataclass(order=True, slots=True)
class PlannedEvent:
    """`at` is in seconds since the start of the simulation."""

    at: float
    seq: int
    job: SimulatedJob | None = field(compare=False)
    life: int | None = field(compare=False)  # None: happens whatever became of the job's instances
    action: Callable[[], None] = field(compare=False)

    @property
    def due(self) -> bool:
        return self.job is None or (not self.job.status.final and self.life in (None, self.job.life))


class Schedule:
    """The events to come."""

    def __init__(self) -> None:
        self._events: list[PlannedEvent] = []
        self._seq = itertools.count()

    def plan(self, at: float, action: Callable[[], None], job: SimulatedJob | None, life: int | None) -> None:
        """Let `action` happen at `at`, rounded to microseconds; see `PlannedEvent` for `job` and `life`."""
        heapq.heappush(self._events, PlannedEvent(round(at, 6), next(self._seq), job, life, action))

    def next_at(self) -> float | None:
        """When something happens next; None if nothing will."""
        while self._events and not self._events[0].due:
            heapq.heappop(self._events)
        return self._events[0].at if self._events else None

    def pop(self, until: float) -> PlannedEvent | None:
        """The first event up to and including `until`, due or not; None if there is none."""
        return heapq.heappop(self._events) if self._events and self._events[0].at <= until else None
