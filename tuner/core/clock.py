"""The only module that reads the time or sleeps.

Everything else is given a `Clock`, or one `now` for each tick. So the same engine runs in real and in virtual time, and
no test sleeps. A lint rule bans every other reading of the wall clock in this package. The exceptions are the two
modules that travel into containers and the local supervisor, which are separate programs.

Rules: times are aware and in UTC. Waiting uses the monotonic clock, so a jump of the wall clock neither ends nor
prolongs a wait.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

# A wait notices `wake` within this time. A signal handler may call it: it takes no lock, so it cannot deadlock.
_SLICE_S = 0.1


class Clock(Protocol):
    """What the engine needs of time."""

    def now(self) -> datetime:
        """The present moment, aware, in UTC."""
        ...

    def elapsed_s(self) -> float:
        """Seconds since a fixed moment. They pass while the machine sleeps, and nobody can set this clock."""
        ...

    def wait(self, until: datetime, *, due: datetime | None = None) -> None:
        """Return at `until`, the next poll, or earlier when woken; at once when `until` has passed.

        `due` is when the caller itself next has something to do, None if never. Virtual time must not jump over it;
        real time does not need it.
        """
        ...


class SystemClock:
    """Real time."""

    def __init__(self) -> None:
        self._woken = False

    def now(self) -> datetime:
        return datetime.now(UTC)

    def elapsed_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, until: datetime, *, due: datetime | None = None) -> None:  # noqa: ARG002 - for virtual time
        end = time.monotonic() + (until - self.now()).total_seconds()
        while not self._woken and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))
        self._woken = False

    def wake(self) -> None:
        """End the wait under way, or the next one. Safe to call from a signal handler."""
        self._woken = True


class EventSource(Protocol):
    """Something in which events happen as virtual time passes."""

    def next_event_at(self) -> datetime | None:
        """When the next event happens on its own; None if there is none."""
        ...

    def advance(self, to: datetime) -> None:
        """Let everything up to and including `to` happen."""
        ...


class VirtualClock:
    """Time that passes only in `wait`, which jumps to the next poll boundary at or after the next event of its source.

    The engine looks only at its poll boundaries, exactly as in production, so detection delays are kept while empty
    polls are skipped.
    """

    def __init__(self, start: datetime) -> None:
        self._now = self._start = start
        self._source: EventSource | None = None

    def attach(self, source: EventSource) -> None:
        """Let this source pass through the time of this clock."""
        self._source = source

    def now(self) -> datetime:
        return self._now

    def elapsed_s(self) -> float:
        return (self._now - self._start).total_seconds()

    def wait(self, until: datetime, *, due: datetime | None = None) -> None:
        poll = until - self._now
        if poll > timedelta(0):
            moments = [m for m in (due, self._source.next_event_at() if self._source else None) if m is not None]
            idle = min(moments, default=until) - self._now
            self._now += max(1, -(-idle // poll)) * poll
        if self._source is not None:
            self._source.advance(self._now)

    def jump(self, by: timedelta) -> None:
        """Set the clock forward or back, as an administrator or a bad time server would."""
        self._now += by
        self._start += by
