"""One seed's story: engines come and go in a world that fails, then in one that does not.

The safety phase: faults of the menu come as planned; whatever happens, what is wrong is never written, sent or billed.
The liveness phase: no faults, capacity and database there; everything ends in a bounded time.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from tests import factories
from tests.engine.sweeps import START, STUDY, Died, merged
from tests.simulation import endings, faults
from tests.simulation.broken import Broken
from tests.simulation.invariants import Invariants, parsed
from tests.simulation.noticed import Noticed
from tests.simulation.scenario import Scenario, scenario
from tests.simulation.world import Diary, Gate, Port, Progress, Refusals, SkewedClock, new_store
from tuner.core.clock import VirtualClock
from tuner.core.jobs import HistoryRow
from tuner.core.prices import RateCard
from tuner.core.records import Event, Holder, Intent, Study, StudyState
from tuner.engine.engine import LEASE_S, Engine, Services
from tuner.operations.backend import make_proposer
from tuner.operations.reconcile import Reconciler, Resumption
from tuner.reports.records import EventLine
from tuner.simulator.cloud import SimulatedCloud
from tuner.simulator.parts import SimulatedJob
from tuner.spec.sections import parse
from tuner.spec.study_file import SpecError, StudySpec, apply_set, to_json
from tuner.store.store import LeaseHeld, LeaseLost, Store, StoreUnreachable

# The liveness phase takes at most this long in virtual time, and at most this number of ticks.
_CALM_DAYS = 20
_TICKS_MAX = 6000
_RESTS_MAX = 6
# So often cron calls for a cycle, where it drives the study.
_CRON = timedelta(minutes=2)
# Kinds of faults that keep an engine from seeing jobs or from stopping them.
_AWAY = (
    "death",
    "suspended",
    "late",
    "second",
    "store",
    "clock",
    "list",
    "lost",
    "api:list",
    "api:describe",
    "api:stop",
)


@dataclass
class Process:
    """One engine's process."""

    number: int
    host: str
    engine: Engine | None = None
    fenced: bool = False  # another has taken the study over
    died: bool = False
    ticks: int = 0
    tick_at: datetime = START  # when its tick began, by its machine's clock: the time by which it decides
    answered: set[str] = field(default_factory=set)  # jobs that it was told in this tick were created
    soak: "Soak | None" = None

    def committed(self, events: tuple[Event, ...]) -> None:
        """Listener: what was committed is read from the store, not from here."""

    def ticked(self, study: Study, live: object) -> None:
        """Listener: a tick is over."""
        self.ticks += 1
        self.answered.clear()
        self.soak.ticked(self)

    def store_away(self, at: datetime, error: StoreUnreachable | None) -> None:
        """Listener: it is the story that takes the store away."""


class Unseen:
    """A display that nobody looks at."""

    def event(self, line: EventLine) -> None:
        """Ignored."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a story went."""

    seed: int
    broken: str | None  # the first invariant that did not hold
    hits: Counter[str]
    transitions: Counter[tuple[str, str, str]]
    ends: Counter[str]
    digest: str
    ticks: int


def run(seed: int, stores: Callable[[], Store] = new_store, menu: int = 1) -> Outcome:
    """Tell the story of `seed` once, with a store that is made for it and closed after it."""
    soak = Soak(scenario(seed, faults.MENUS[menu]), stores)
    broken = None
    try:
        soak.story()
    except Broken as error:
        broken = str(error)
    except (Died, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - whatever kills an engine is a finding
        broken = f"engine_survives: {type(error).__name__}: {error} at {_where(error)}"
    outcome = soak.outcome(broken)
    soak.store.close()
    return outcome


def _where(error: BaseException) -> str:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return "" if last is None else f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"


@dataclass
class Soak:
    scenario: Scenario
    stores: Callable[[], Store] = new_store
    hits: Counter[str] = field(default_factory=Counter)
    skew: timedelta = timedelta(0)
    store_down_until: datetime = START
    commit_fault: str | None = None
    list_fault: str | None = None
    foreign: set[str] = field(default_factory=set)
    deleted: dict[str, SimulatedJob] = field(default_factory=dict)
    current: Process | None = None
    last_process: Process | None = None
    processes: int = 0
    ticks: int = 0
    limits: set[str] = field(default_factory=set)
    nested: bool = False
    calm: bool = False

    def __post_init__(self) -> None:
        told = self.scenario
        self.clock = VirtualClock(START)
        self.cloud = SimulatedCloud(
            self.clock,
            told.seed,
            scripts=told.scripts,
            outages=told.outages,
            pools=told.pools,
            settings=told.settings,
            faults=told.background,
        )
        self.diary = Diary(self.clock, self.cloud)
        self.refusals = Refusals()
        self.armed: list[list] = []  # point, kind, passages to skip
        self.traps: list[tuple[str, str, str]] = []
        self.rng = random.Random(f"soak:{told.seed}")
        self.store = self.stores()
        self.study = self.store.create_study(self._new_study())
        card = RateCard(self.spec().prices)
        types = self.spec().training.instance_types
        self.rates = {each: card.rate(each, self.spec().region).microusd_per_hour for each in types}
        self.invariants = Invariants(self)
        self.noticed = Noticed(self)
        for each in told.planned:
            self.diary.plan(START + timedelta(seconds=each.at_s), self._fault(each.kind, each.draw))

    def _fault(self, kind: str, draw: int) -> Callable[[], None]:
        return lambda: faults.MENU[kind](self, random.Random(draw))

    def _new_study(self) -> Study:
        base = STUDY if self.scenario.space is None else {**STUDY, "space": self.scenario.space}
        spec = parse(merged(base, self.scenario.study), Path("/"), None)
        return factories.study(
            spec.name,
            key=f"{spec.name}-{self.rng.getrandbits(24):06x}",
            owner="test",
            spec=to_json(spec),
            bundle_uri="s3://tuner-local/bundles/b/",
            created_at=START,
        )

    # --- the story

    def story(self) -> None:
        safe_until = START + timedelta(seconds=self.scenario.safety_s)
        self._drive(safe_until)
        self._calm_down()
        bound = self.clock.now() + timedelta(days=_CALM_DAYS)
        self.resume()
        for _ in range(_RESTS_MAX):
            self._drive(bound)
            if self._over():
                break
        if self.clock.now() >= bound or self.ticks >= _TICKS_MAX:
            raise Broken("everything_ends", f"{self.recorded().state} after {_CALM_DAYS} days, {self.ticks} ticks")
        self.invariants.check()
        endings.check(self)

    def _over(self) -> bool:
        """Whether the study has ended, or rests at a limit that the user leaves alone; else it goes on."""
        state = self.recorded().state
        if state is StudyState.OUT_OF_BUDGET and self.scenario.raises_limits:
            self.request("set", {"budget.usd": "1000"}, "set:budget")
        elif state is StudyState.PAST_DEADLINE and self.scenario.raises_limits:
            self.request("set", {"budget.deadline": "30d"}, "set:deadline")
        elif state is StudyState.STOPPED:
            self.resume()
        else:
            return True
        return False

    def _calm_down(self) -> None:
        """No more faults; what they left behind stays."""
        self.calm = True
        self.diary.clear()
        self.cloud.calm()
        # somebody asked for a quota where there was none
        quotas = {kind: max(1, quota) for kind, quota in self.cloud.settings.quotas.items()}
        self.cloud.settings = replace(self.cloud.settings, quotas=quotas)
        self.refusals.clear()
        self.armed.clear()
        for kind, name, status in self.traps:
            if (name, status) not in self.cloud._traps:
                self.hit(kind)
        self.cloud._traps.clear()
        self.commit_fault = None
        self.store_down_until = self.clock.now()

    def _drive(self, until: datetime) -> None:
        """Engines at work until then; in the liveness phase until the study rests."""
        while self.clock.now() < until and self.ticks < _TICKS_MAX:
            process = self.current or self._start("here")
            if process is None:
                self._wait(30.0)
            elif self._lives(process, until) and (self.calm or self.recorded().state.ended):
                return

    def _lives(self, process: Process, until: datetime) -> bool:
        """Run a process until something ends it; true if its study rests."""
        try:
            state = self._work(process, lambda: self.clock.now() >= until or self.ticks >= _TICKS_MAX)
        except Died:
            self._bury(process)
            return False
        except StoreUnreachable:
            if self.clock.now() < until and self.ticks < _TICKS_MAX:
                raise
            self._bury(process)  # asked to leave while the database was gone: it could not give its lease back
            return False
        except LeaseLost as error:
            if not process.fenced:
                raise Broken("one_writer", f"an engine lost its lease, and nobody took it: {error}") from error
            return False
        if process.fenced:  # its time was over before it looked again
            return False
        if state.active:
            if self.scenario.cycles:
                self._await_next_cycle(process)
            return False
        self.invariants.check()
        endings.at_rest(self)
        self._leave(process)
        if not self.calm:
            self._wait(self.rng.uniform(60, 900))
            self.resume()
        return True

    def _work(self, process: Process, over: Callable[[], bool]) -> StudyState:
        if not self.scenario.cycles:
            return process.engine.run(over)
        self.hit("cycle")
        return process.engine.cycle(over)

    def _await_next_cycle(self, process: Process) -> None:
        engine, clock = process.engine, process.engine._services.clock
        self._leave(process)
        try:
            clock.wait(clock.now() + _CRON, due=engine._next_due(clock.now()))
        except Died:
            return

    def _bury(self, process: Process) -> None:
        process.died = True
        if self.current is process:
            self.current = None
        self.invariants.check()

    def _leave(self, process: Process) -> None:
        """In order: the lease is given back."""
        self.current = None
        self.store.release(process.engine.lease)

    def _wait(self, seconds: float) -> None:
        """Nobody is at work for a while."""
        try:
            self._sleep(seconds)
        except Died:
            return

    def _start(self, host: str) -> Process | None:
        """A new process; None while the study cannot be had."""
        self.processes += 1
        process = Process(self.processes, host, soak=self)
        gate = Gate(self, process)
        clock = SkewedClock(self.clock, lambda: self.skew)
        holder = factories.holder(self.processes, host=host)
        batch = self.rng.choice((None, None, 1, 3))
        if self.scenario.cycles:  # a later process with a larger one would read what those before it did not
            batch = 2
        services = Services(
            store=gate,
            clock=clock,
            jobs=Port(self, process),
            progress=lambda: Progress(self, batch),
            proposer=make_proposer,
            listener=process,
            crash_point=lambda point: self._passes(process, point),
        )
        try:
            lease = gate.acquire(self.study.id, holder, now=clock.now(), period_s=LEASE_S, gone=self._gone(host))
            study = gate.study_by_id(self.study.id)
            if self.processes > 1:  # after the first, which launched it, each takes the study up as cron's do
                study = Reconciler(self.store, lease, Unseen(), clock).take_up(study, Resumption("cron", once=True))
            process.engine = Engine(study, lease, services)
        except (LeaseHeld, StoreUnreachable):
            return None
        self.current = self.last_process = process
        return process

    def _gone(self, host: str) -> Callable[[Holder], bool]:
        """Only on the same host is it certain that a process is gone."""
        alive = None if self.current is None else self.current.number
        return lambda holder: holder.host == host and holder.pid != alive

    def ticked(self, process: Process) -> None:
        self.ticks += 1
        if self.ticks >= _TICKS_MAX:
            raise Broken("everything_ends", f"{self.recorded().state} after {self.ticks} ticks")
        self.invariants.check(process)
        self.noticed.ticked(process)

    # --- deaths and suspensions

    def arm(self, point: str, kind: str, skip: int = 0) -> None:
        self.armed.append([point, kind, skip])

    def _passes(self, process: Process, point: str) -> None:
        if point == "before observed":  # each tick passes here first, and no time has passed in it yet
            process.tick_at = self.clock.now() + self.skew
        for entry in self.armed:
            if entry[0] != point:
                continue
            if entry[2] > 0:
                entry[2] -= 1
                return
            if entry[1].startswith("death:"):
                self.armed.remove(entry)
                self.hit(entry[1])
                raise Died(point)
            if not self.nested:
                self.armed.remove(entry)
                self.suspend(entry[1], takes_over=entry[1].startswith("suspended:"))
            return

    def die(self, kind: str) -> None:
        """The process that waits is killed; without one, nothing happens."""
        if self.current is not None:
            self.hit(kind)
            raise Died(kind)

    def suspend(self, kind: str, *, takes_over: bool) -> None:
        """The engine stands still for longer than its lease; meanwhile another may take over."""
        process = self.current
        if process is None or self.nested:
            return
        self.nested = True
        try:
            lease_left_s = (process.engine.lease.expires_at - self.clock.now() - self.skew).total_seconds()
            self._sleep(max(0.0, lease_left_s) + self.rng.uniform(1, 600))
            self.hit(kind)
            if takes_over:
                self._take_over(process)
        finally:
            self.nested = False

    def _sleep(self, seconds: float) -> None:
        self.clock.wait(self.clock.now() + timedelta(seconds=seconds), due=self.clock.now())

    def _take_over(self, process: Process) -> None:
        other = self._start("elsewhere" if process.host == "here" else "here")
        if other is None:
            self.current = process
            return
        process.fenced = True
        ticks = self.rng.randint(1, 12)
        try:
            state = other.engine.run(lambda: other.ticks >= ticks)
        except Died:
            self._bury(other)
            return
        if not state.active:
            self._leave(other)

    def second_engine(self) -> None:
        """Somebody starts an engine though one is alive: it must be told who holds the study."""
        if self.current is None or self.nested or self.clock.now() < self.store_down_until:
            return
        alive = self.current
        # virtual time jumps over idle polls, at each of which the engine would have renewed
        alive.engine._renew()
        skew = self.skew
        self._sleep(self.rng.uniform(0, alive.engine.live.policy.poll_s))
        if self.current is not alive or alive.fenced or self.clock.now() < self.store_down_until:
            return
        # a clock that is set forward lets a lease run out early: then it is a take-over, and the fence has to hold
        expired = self.skew > skew and alive.engine.lease.expires_at <= self.clock.now() + self.skew
        other = self._start(self.rng.choice(("here", "elsewhere")))
        self.hit("second engine")
        if other is None:
            return
        if not expired:
            raise Broken("one_writer", "a second engine was given the study while the first was alive")
        alive.fenced = True

    # --- what faults use

    def hit(self, kind: str) -> None:
        self.hits[kind] += 1

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.diary.plan(self.clock.now() + timedelta(seconds=seconds), action)

    def trap(self, kind: str, name: str, status: str, after_s: float) -> None:
        self.cloud.interrupt_when(name, status, after_s)
        self.traps.append((kind, name, status))

    def listed(self) -> None:
        if self.list_fault is not None:
            self.hit(self.list_fault)

    def lists_recover(self) -> None:
        self.list_fault, self.cloud.faults = None, self.scenario.background

    def delete(self, name: str) -> None:
        """Somebody deletes a job that has ended."""
        job = self.cloud.jobs.get(name)
        if job is not None and job.status.final:
            self.deleted[name] = job
            self.cloud.delete(name)

    def request(self, verb: str, values: dict, kind: str, *, unchecked: bool = False) -> None:
        """A user's wish, from another process, as the verbs leave it."""
        if self.recorded().state.ended:
            return
        if verb == "set" and not unchecked and not self._allowed(values):
            return
        self.store.add_request(self.study.id, verb, values, "me", self.clock.now() + self.skew)
        self.hit(kind)

    def _allowed(self, values: dict) -> bool:
        try:
            changed = apply_set(self.spec(), [f"{key}={value}" for key, value in values.items()])
        except SpecError:
            return False
        summary = self.store.summary(self.study.id)
        limit = changed.budget.microusd
        return limit is None or limit >= summary.spend_microusd + summary.reserved_microusd

    def resume(self) -> None:
        """What `tuner resume` writes, by its own hand. With an engine at work it is refused."""
        study = self.recorded()
        if self.current is not None or self.clock.now() < self.store_down_until:
            return
        if study.state.ended or study.intent is Intent.RUN:
            return
        now = self.clock.now() + self.skew
        lease = self.store.acquire(
            study.id,
            factories.holder(0),
            now=now,
            period_s=LEASE_S,
            gone=lambda _holder: True,
        )
        Reconciler(self.store, lease, Unseen(), self.clock).take_up(study, Resumption("me"))
        self.store.release(lease)
        self.hit("user:resume")

    # --- what is looked at

    @property
    def was_away(self) -> bool:
        """Whether an engine could not see or stop jobs for a while."""
        told = self.scenario.background
        blind = bool(told.refused or told.lost or told.lagging)
        return blind or any(count and kind.startswith(_AWAY) for kind, count in self.hits.items())

    @property
    def jobs(self) -> dict[str, SimulatedJob]:
        """Every job of ours there ever was."""
        ours = {name: job for name, job in self.cloud.jobs.items() if name not in self.foreign}
        return ours | self.deleted

    def history(self, name: str) -> list[HistoryRow]:
        job = self.jobs.get(name)
        return [] if job is None else job.history

    def recorded(self) -> Study:
        return self.store.study_by_id(self.study.id)

    def spec(self) -> StudySpec:
        return parsed(self.recorded().spec)

    def outcome(self, broken: str | None) -> Outcome:
        events = self.store.events(self.study.id)
        self.hits.update(set(faults.stats_of(self)))
        ends = Counter(str(attempt.end) for attempt in self.store.attempts(self.study.id))
        self.hits["job:foreign"] += ends["foreign"]
        return Outcome(
            seed=self.scenario.seed,
            broken=broken,
            hits=self.hits,
            transitions=self.invariants.transitions,
            ends=ends,
            digest=hashlib.sha256(repr(events).encode()).hexdigest(),
            ticks=self.ticks,
        )
