"""What stands between an engine and its world: clock, job service and store, each able to fail on demand.

Rules: one of each for every engine process, so that it is known who calls; the world behind them is one. A failure is
counted as hit when somebody met it, not when it was planned.
"""

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

from tests.postgres_server import Server
from tests.simulation.broken import Broken
from tuner.core.clock import VirtualClock
from tuner.core.jobs import JobError, JobRequest, ServiceUnavailable
from tuner.simulator.cloud import SimulatedCloud
from tuner.store import schema
from tuner.store.store import Store, StoreConflict, StoreUnreachable

if TYPE_CHECKING:
    from tests.simulation.soak import Process, Soak


class Diary:
    """The cloud with a list of things that happen at their moments, joined to one clock."""

    def __init__(self, clock: VirtualClock, cloud: SimulatedCloud) -> None:
        self._clock, self._cloud = clock, cloud
        self._entries: list[tuple[datetime, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._reached = clock.now()
        clock.attach(self)

    def plan(self, at: datetime, action: Callable[[], None]) -> None:
        heapq.heappush(self._entries, (at, next(self._count), action))

    def clear(self) -> None:
        self._entries.clear()

    def next_event_at(self) -> datetime | None:
        moments = [self._cloud.next_event_at(), self._entries[0][0] if self._entries else None]
        return min((moment for moment in moments if moment is not None), default=None)

    def advance(self, to: datetime) -> None:
        """Let all of it happen in its order; an action that raises leaves time where it is."""
        while self._entries and self._entries[0][0] <= to:
            at, _, action = heapq.heappop(self._entries)
            self._reach(at)
            action()  # may wait itself, and so come here again
        self._reach(to)

    def _reach(self, to: datetime) -> None:
        self._reached = self._clock._now = max(to, self._reached)
        self._cloud.advance(self._reached)


class SkewedClock:
    """The clock of an engine's machine, which may be wrong."""

    def __init__(self, true: VirtualClock, skew: Callable[[], timedelta]) -> None:
        self._true, self._skew = true, skew

    def now(self) -> datetime:
        return self._true.now() + self._skew()

    def elapsed_s(self) -> float:
        return self._true.elapsed_s()

    def wait(self, until: datetime, *, due: datetime | None = None) -> None:
        skew = self._skew()
        self._true.wait(until - skew, due=None if due is None else due - skew)


class Refusals:
    """Errors that the next calls meet."""

    def __init__(self) -> None:
        self._planned: defaultdict[str, deque[tuple[str, JobError | OSError, bool]]] = defaultdict(deque)

    def plan(self, kind: str, call: str, error: JobError | OSError, *, lost: bool = False) -> None:
        self._planned[call].append((kind, error, lost))

    def meet(self, soak: "Soak", call: str, *, after: bool) -> None:
        """Raise what is planned for this call, before its effect or after it."""
        slots = self._planned[call]
        if slots and slots[0][2] == after:
            kind, error, _ = slots.popleft()
            soak.hit(kind)
            raise error

    def clear(self) -> None:
        self._planned.clear()


class Port:
    """The job service as one engine reaches it."""

    def __init__(self, soak: "Soak", process: "Process") -> None:
        self._soak, self._process = soak, process

    def create(self, request: JobRequest) -> str:
        soak = self._soak
        soak.invariants.creating(self._process, request)
        soak.refusals.meet(soak, "create", after=False)
        arn = soak.cloud.create(request)
        soak.refusals.meet(soak, "create", after=True)
        self._process.answered.add(request.name)
        return arn

    def describe(self, name: str):
        self._soak.refusals.meet(self._soak, "describe", after=False)
        return self._soak.cloud.describe(name)

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime):
        soak = self._soak
        soak.refusals.meet(soak, "list", after=False)
        found = soak.cloud.list_changed(prefix, created_after=created_after, modified_after=modified_after)
        soak.listed()
        return found

    def stop(self, name: str) -> None:
        soak = self._soak
        soak.invariants.stopping(self._process, name)
        soak.refusals.meet(soak, "stop", after=False)
        soak.cloud.stop(name)
        soak.refusals.meet(soak, "stop", after=True)


class Progress:
    """A reader of progress that may fail."""

    def __init__(self, soak: "Soak", batch: int | None) -> None:
        self._soak, self._reader = soak, soak.cloud.progress(batch=batch)

    def expect(self, prefixes) -> None:
        self._reader.expect(prefixes)

    def read(self, prefix: str):
        self._soak.refusals.meet(self._soak, "read", after=False)
        return self._reader.read(prefix)

    def forget(self, prefix: str) -> None:
        self._reader.forget(prefix)


class Gate:
    """The store as one engine reaches it."""

    def __init__(self, soak: "Soak", process: "Process") -> None:
        self._soak, self._process = soak, process

    def __getattr__(self, name: str):
        call = getattr(self._soak.store, name)

        def reach(*args, **kwargs):
            self._reach()
            return call(*args, **kwargs)

        return reach

    def _reach(self) -> None:
        if self._soak.clock.now() < self._soak.store_down_until:
            self._soak.hit("store:down")
            raise StoreUnreachable("the simulation took the database away")

    def commit(self, lease, change, *, now) -> None:
        soak = self._soak
        self._reach()
        if soak.commit_fault == "store:lost before commit":
            self._lose()
        soak.store.commit(lease, change, now=now)
        soak.invariants.committed(self._process, change, now)
        # one with events would be refused for their numbers: here only the guards of the rows stand
        if soak.commit_fault == "store:sent twice" and (change.attempts or change.trials) and not change.events:
            soak.commit_fault = None
            soak.hit("store:sent twice")
            self._again(lease, change, now)
        if soak.commit_fault == "store:lost after commit":
            self._lose()

    def _again(self, lease, change, now) -> None:
        """As a driver does that lost an answer and tries once more: it must be told that the rows have changed."""
        try:
            self._soak.store.commit(lease, change, now=now)
        except StoreConflict:
            return
        raise Broken("guarded", f"the same change was written twice: {change}")

    def _lose(self) -> None:
        kind, self._soak.commit_fault = self._soak.commit_fault, None
        self._soak.hit(kind)
        raise StoreUnreachable("the simulation cut the connection to the database")


def answer_lost(call: str) -> JobError:
    return ServiceUnavailable(f"{call}: the answer was lost by the simulation")


def new_store() -> Store:
    """A store in memory, from a copy of a migrated one: migrating takes longer than a whole story."""
    engine = schema.connect("sqlite://")
    raw = engine.raw_connection()
    _template()._reader.raw_connection().driver_connection.backup(raw.driver_connection)
    raw.close()
    return Store("sqlite://", engine)


@cache
def _template() -> Store:
    return Store.open("sqlite://")


def postgres_stores(server: Server) -> Callable[[], Store]:
    """Makes stores on PostgreSQL, one at a time: what the one before left behind is dropped."""
    template = server.make()
    Store.open(template).close()
    made: list[str] = []

    def make() -> Store:
        while made:
            server.drop(made.pop())
        made.append(server.make(template))
        return Store.open(made[-1])

    return make
