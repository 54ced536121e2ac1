"""The engine on both kinds of database: what it decides is the same, and a server that breaks costs only time.

SQLite's side of crashes stands in `test_crashes`; here PostgreSQL is compared with it, then broken under the engine.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import sqlalchemy as sa
from checkers import broken, terminal
from simulated import script_of
from sweeps import Died, Sweep, holder

from tests.postgres_server import OwnServer, Server
from tuner.cli.live import QuietDisplay
from tuner.core.records import StudyState
from tuner.engine.engine import LEASE_S
from tuner.reports.narrate import DisplayListener
from tuner.reports.records import EventLine
from tuner.store.store import LeaseHeld, LeaseLost, StoreUnreachable

pytestmark = pytest.mark.slow

STORY = {
    "outages": [(400.0, 500.0), (1300.0, 9000.0)],
    "script": script_of(epochs=12, step_s=60.0),
    "changes": {
        "trials": 3,
        "parallel": 2,
        "training": {"max_wait": "70m"},
        "search": {"pruner": {"name": "MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 1}},
    },
}

MakeSweep = Callable[..., Sweep]


def rows(sweep: Sweep) -> tuple[list, ...]:
    store, study_id = sweep.store, sweep.study.id
    return (
        store.events(study_id),
        store.trials(study_id),
        store.attempts(study_id),
        store.runs(study_id),
        store.points(study_id),
    )


def statements(sweep: Sweep) -> list[str]:
    """The first words of what reaches the database from now on; BEGIN is SQLite's own."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if not text.startswith("BEGIN"):
            seen.append(text.split(maxsplit=1)[0])

    sa.event.listen(sweep.store._engine, "before_cursor_execute", note)
    return seen


def outcome(sweep: Sweep) -> list:
    return [(trial.number, trial.params, trial.state, trial.values) for trial in sweep.trials()]


@pytest.fixture
def quiet(make_sweep: MakeSweep) -> list:
    """How the story ends where nothing is in its way."""
    sweep = make_sweep(**STORY)
    sweep.run()
    return outcome(sweep)


@dataclass
class Trouble:
    """Does something at chosen passages of the engine's crash points; counts what it passes."""

    act: Callable[[], None]
    every: int
    passed: int = 0
    done: list[str] = field(default_factory=list)

    def __call__(self, point: str) -> None:
        self.passed += 1
        if self.passed % self.every == 0:
            self.done.append(point)
            self.act()


def test_the_same_seed_says_and_writes_the_same_on_either(
    make_sweep: MakeSweep, sqlite_url: str, postgres_url: str
) -> None:
    one, other = make_sweep(url=sqlite_url, **STORY), make_sweep(url=postgres_url, **STORY)
    said = [statements(sweep) for sweep in (one, other)]
    assert one.run() is other.run() is StudyState.FINISHED
    assert said[0] == said[1]
    assert rows(one) == rows(other)
    assert broken(one) == broken(other) == []


def test_dying_again_and_again_on_a_server(make_sweep: MakeSweep, postgres_url: str, quiet: list) -> None:
    sweep = make_sweep(url=postgres_url, **STORY)

    def die() -> None:
        raise Died

    sweep.crash_point = Trouble(die, every=11)
    for _ in range(200):
        try:
            sweep.run()
            break
        except Died:
            continue
    assert sweep.engines > 5
    assert outcome(sweep) == quiet
    assert broken(sweep) == []


def test_connections_that_are_cut_cost_only_time(
    make_sweep: MakeSweep, postgres: Server, postgres_url: str, quiet: list
) -> None:
    """Between the engine's steps: the next one notices, and goes on over a new connection."""
    sweep = make_sweep(url=postgres_url, **STORY)
    sweep.crash_point = trouble = Trouble(lambda: postgres.disconnect(postgres_url), every=5)
    assert sweep.run() is StudyState.FINISHED
    assert len(set(trouble.done)) > 3
    assert outcome(sweep) == quiet
    assert broken(sweep) == []


@pytest.mark.parametrize("table", ["tuner_trials", "tuner_attempts", "tuner_metrics", "tuner_events"])
def test_a_connection_that_is_cut_within_a_commit(
    make_sweep: MakeSweep, postgres: Server, postgres_url: str, quiet: list, table: str
) -> None:
    """Nothing of the change is there: the engine loads what is, and does the step again."""
    sweep = make_sweep(url=postgres_url, **STORY)
    writes = 0

    def cut(_connection: object, _cursor: object, text: str, *_: object) -> None:
        nonlocal writes
        if table in text and text.startswith(("INSERT", "UPDATE")):
            writes += 1
            if writes % 3 == 0:
                postgres.disconnect(postgres_url)

    sa.event.listen(sweep.store._engine, "before_cursor_execute", cut)
    assert sweep.run() is StudyState.FINISHED
    assert writes >= 3
    assert outcome(sweep) == quiet
    assert broken(sweep) == []


class Said(QuietDisplay):
    """What a user would have read."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def event(self, line: EventLine) -> None:
        self.texts.append(str(line.text))


def test_whoever_waits_for_the_store_can_be_told_to_leave(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(**STORY)
    engine = sweep.engine()
    wait, waits = sweep.clock.wait, []

    def gone(*_: object, **__: object) -> None:
        raise StoreUnreachable("gone for ever")

    def note(*args: object, **more: object) -> None:
        waits.append(args)
        wait(*args, **more)

    monkeypatch.setattr(sweep.store, "renew", gone)
    monkeypatch.setattr(sweep.clock, "wait", note)
    with pytest.raises(StoreUnreachable, match="gone for ever"):
        engine.run(lambda: len(waits) == 3)


def test_a_server_that_is_away_for_a_minute(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, postgres: Server, postgres_url: str, quiet: list
) -> None:
    """It crashes under the engine, stays away for some polls, and comes back; jobs went on meanwhile.

    The display looks into the store too, after the engine did: it must not end the engine that it shows.
    """
    if not isinstance(postgres, OwnServer):
        pytest.skip("the server of TEST_DB_URL is not ours to stop")
    sweep = make_sweep(url=postgres_url, **STORY)
    wait, polls, away, passed = sweep.clock.wait, [], [], []

    def crash(point: str) -> None:
        passed.append(point)
        if postgres.running and passed.count(point) % 9 == 4:
            postgres.stop()
            away.append(len(polls))

    def come_back(*args: object, **more: object) -> None:
        polls.append(sweep.clock.now())
        wait(*args, **more)
        if not postgres.running and len(polls) == away[-1] + 3:
            postgres.start()

    monkeypatch.setattr(sweep.clock, "wait", come_back)
    engine, said = sweep.engine(), Said()
    engine._services = replace(engine._services, listener=DisplayListener(said, sweep.store))
    sweep.crash_point = crash
    try:
        assert engine.run(lambda: False) is StudyState.FINISHED
    finally:
        if not postgres.running:
            postgres.start()
    assert len(away) >= 3
    told = [text for text in said.texts if "store" in text]
    assert told[1::2] == ["the store is there again"] * len(away)
    assert ["jobs go on, and so does the study" in text for text in told[::2]] == [True] * len(away)
    assert outcome(sweep) == quiet
    assert broken(sweep) == []


@pytest.mark.parametrize(
    "point", ["before observed", "after intended", "before create", "after create", "before acted", "after acted"]
)
def test_an_engine_that_slept_writes_and_sends_nothing(
    make_sweep: MakeSweep, store_url: str, point: str, quiet: list
) -> None:
    """It sleeps at a point of its tick; another takes over and finishes the study; it wakes up where it was."""
    sweep = make_sweep(url=store_url, **STORY)
    left: list[object] = []
    sent: list[str] = []

    def sleep(here: str) -> None:
        if here != point:
            return
        sweep.crash_point = lambda _point: None
        take_over(sweep)
        left.extend([rows(sweep), sweep.store.study_by_id(sweep.study.id), list(sweep.cloud.jobs)])
        watch(sweep, sent)

    sweep.crash_point = sleep
    with pytest.raises(LeaseLost):
        sweep.run()
    assert [rows(sweep), sweep.store.study_by_id(sweep.study.id), list(sweep.cloud.jobs)] == left
    # between looking at the lease and calling lies a moment; a name that is taken makes that call harmless
    assert sent == (["create"] if point == "before create" else [])
    assert terminal(sweep)
    assert broken(sweep) == []
    assert outcome(sweep) == quiet


def take_over(sweep: Sweep) -> None:
    """As another host does: it cannot see whether the first engine is alive, and goes by the lease."""

    def acquire() -> None:
        sweep.store.acquire(
            sweep.study.id, holder(9), now=sweep.clock.now(), period_s=LEASE_S, gone=lambda _holder: False
        )

    with pytest.raises(LeaseHeld, match="pid 1 on here"):
        acquire()
    until = sweep.store.study_by_id(sweep.study.id).lease_expires_at
    sweep.clock.jump(until - sweep.clock.now())
    acquire()
    assert sweep.run() is StudyState.FINISHED


def watch(sweep: Sweep, sent: list[str]) -> None:
    """Note every call from now on that would change something in the cloud."""
    create, stop = sweep.cloud.create, sweep.cloud.stop

    def note(name: str, call: Callable) -> Callable:
        def noted(argument: object) -> object:
            sent.append(name)
            return call(argument)

        return noted

    sweep.cloud.create, sweep.cloud.stop = note("create", create), note("stop", stop)
