"""Several engines, each with a study of its own, in one account: one simulated cloud, one store, one virtual clock.

Below the engines' job services stands a `Meter`, which counts calls as AWS would, a page of a list as one.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from tests.engine.sweeps import START, Sweep, holder
from tuner.aws.rates import BACKEND, RATES, RateLimited, SharedCalls
from tuner.core.calls import UNMETERED, Call
from tuner.core.clock import VirtualClock
from tuner.core.hints import Hint
from tuner.core.jobs import JobRequest, JobService
from tuner.core.records import CallRate, Study
from tuner.engine.engine import LEASE_S, Engine, NoListener, Services
from tuner.operations.backend import make_proposer
from tuner.simulator.cloud import SimulatedCloud
from tuner.simulator.parts import Script
from tuner.store.store import Store

SCOPE = "123456789012/us-east-1"
POLL = timedelta(seconds=30)
PAGE = 100


@dataclass
class Meter:
    """A job service that notes each call that reaches it, and when. A page of a list lists a hundred jobs."""

    cloud: SimulatedCloud
    clock: VirtualClock
    made: dict[Call, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    stopped: list[str] = field(default_factory=list)

    def note(self, call: Call) -> None:
        self.made[call].append(self.clock.now())

    def service(self, next_page: Callable[[], None]) -> JobService:
        return _Metered(self, next_page)

    def calls(self) -> Counter:
        return Counter({call: len(times) for call, times in self.made.items()})


@dataclass
class _Metered:
    meter: Meter
    next_page: Callable[[], None]

    def create(self, request: JobRequest) -> str:
        self.meter.note(Call.CREATE)
        return self.meter.cloud.create(request)

    def describe(self, name: str):
        self.meter.note(Call.DESCRIBE)
        return self.meter.cloud.describe(name)

    def stop(self, name: str) -> None:
        self.meter.note(Call.STOP)
        self.meter.stopped.append(name)
        self.meter.cloud.stop(name)

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime):
        jobs = self.meter.cloud.jobs.values()
        listed = sum(job.name.startswith(prefix) and job.created_at >= created_after for job in jobs)
        for page in range(max(1, -(-listed // PAGE))):
            if page:
                self.next_page()
            self.meter.note(Call.LIST)
        return self.meter.cloud.list_changed(prefix, created_after=created_after, modified_after=modified_after)


@dataclass
class CloudHints:
    """What EventBridge would tell of a study's jobs: each change, some seconds later, some of them never or twice."""

    cloud: SimulatedCloud
    clock: VirtualClock
    study_key: str
    lost: Callable[[int], bool] = lambda _number: False
    late: timedelta = timedelta(seconds=2)
    seen: dict[str, int] = field(default_factory=dict)
    told: int = 0

    def receive(self) -> Iterable[Hint]:
        for job in list(self.cloud.jobs.values()):
            if not job.name.startswith(f"{self.study_key}-"):
                continue
            until = self.clock.now() - self.late
            news = [version for version in job.versions[self.seen.get(job.name, 0) :] if version.modified_at <= until]
            self.seen[job.name] = self.seen.get(job.name, 0) + len(news)
            for version in news:
                self.told += 1
                if not self.lost(self.told):
                    yield Hint(job.name, version.modified_at)
                    yield Hint(job.name, version.modified_at)


class Fleet:
    """Studies of one account, with an engine each, which look every half a minute at different seconds."""

    def __init__(
        self,
        folder: Path,
        *,
        engines: int,
        parallel: int,
        script: Callable[[JobRequest], Script],
        rates: Mapping[Call, CallRate] | None = RATES,
        hints: Callable[["Fleet", Study], CloudHints] | None = None,
        outages: list[tuple[float, float]] | None = None,
    ) -> None:
        self.clock = VirtualClock(START)
        self.cloud = SimulatedCloud(self.clock, 1, scripts=script, outages=outages or [])
        self.meter = Meter(self.cloud, self.clock)
        self.store = Store.open(f"sqlite:///{folder / 'fleet.db'}")
        self._rates, self._hints = rates, hints
        self.sweeps = [self._sweep(folder, number, parallel) for number in range(engines)]
        self.engines = [self._engine(sweep, number) for number, sweep in enumerate(self.sweeps)]
        self._turns = [(START + number * POLL / engines, number) for number in range(engines)]

    def _sweep(self, folder: Path, number: int, parallel: int) -> Sweep:
        changes = {
            "name": f"s{number}",
            "trials": 99_999,
            "parallel": parallel,
            "training": {"max_run": "20h", "max_wait": "28h"},
        }
        return _OnAws(folder / str(number), changes=changes, url=self.store.url)

    def _engine(self, sweep: Sweep, number: int) -> Engine:
        study = sweep.study
        lease = self.store.acquire(
            study.id, holder(number), now=self.clock.now(), period_s=LEASE_S, gone=lambda _holder: True
        )
        calls = None if self._rates is None else SharedCalls(self.store, SCOPE, self.clock, self._rates)
        plain = self.meter.service(lambda: None)
        jobs = plain if calls is None else RateLimited(self.meter.service(calls.page), calls)
        services = Services(
            store=self.store,
            clock=self.clock,
            jobs=jobs,
            progress=self.cloud.progress,
            proposer=make_proposer,
            listener=NoListener(),
            calls=calls or UNMETERED,
            hints=None if self._hints is None else self._hints(self, study),
        )
        return Engine(self.store.study_by_id(study.id), lease, services)

    def run(self, duration: timedelta) -> None:
        """Let all engines tick in their turns."""
        end = self.clock.now() + duration
        while self._turns[0][0] < end:
            at, number = heapq.heappop(self._turns)
            heapq.heappush(self._turns, (at + POLL, number))
            if at > self.clock.now():
                self.clock.wait(at, due=self.clock.now())
            self.engines[number].tick()
        if end > self.clock.now():
            self.clock.wait(end, due=self.clock.now())

    # --- what tests look at

    def attempts(self):
        return [attempt for sweep in self.sweeps for attempt in self.store.attempts(sweep.study.id)]

    def delays_s(self) -> list[float]:
        """From the end of each job to our knowing of it."""
        return [
            (attempt.ended_at - self.cloud.jobs[attempt.job_name].versions[-1].modified_at).total_seconds()
            for attempt in self.attempts()
            if attempt.ended_at is not None
        ]

    def kinds(self) -> Counter:
        return Counter(event.kind for sweep in self.sweeps for event in self.store.events(sweep.study.id))


class _OnAws(Sweep):
    def _new_study(self) -> Study:
        return replace(super()._new_study(), backend=BACKEND)


def overdrawn(times: Iterable[datetime], rate: CallRate) -> float:
    """How far the calls went below the bottom of a bucket that fills at `rate`: 0 where they never did."""
    tokens, last, worst = rate.burst, START, 0.0
    for at in times:
        tokens = min(rate.burst, tokens + (at - last).total_seconds() * rate.per_s) - 1
        last, worst = at, min(worst, tokens)
    return -worst
