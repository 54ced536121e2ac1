"""Real processes on one database: one wins, none waits for a reader, and none leaves half a commit."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from store_records import NOW, Bench, bump, event, trial

from tuner.store.store import Store

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@contextmanager
def running(program: str, *arguments: tuple[str, ...]) -> "Iterator[list[subprocess.Popen[str]]]":
    """One process for each of `arguments`, with our test records; all of them end with the test."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    with ExitStack() as stack:
        processes = []
        for more in arguments:
            processes.append(stack.enter_context(subprocess.Popen([sys.executable, "-c", program, *more], **pipes)))
            stack.callback(processes[-1].kill)
        yield processes


def race(program: str, *arguments: tuple[str, ...]) -> list[str]:
    """The output of each process; all start together once all are ready."""
    with running(program, *arguments) as racers:
        assert [r.stdout.readline() for r in racers if r.stdout] == ["ready\n"] * len(arguments)
        for racer in racers:
            assert racer.stdin
            racer.stdin.close()
        said = [r.stdout.read().strip() for r in racers if r.stdout]
        assert [r.wait(240) for r in racers] == [0] * len(arguments)
    return said


RACER = """
import sys
from dataclasses import replace
from store_records import ME, NOW
from tuner.store.store import LeaseHeld, Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
try:
    print(store.acquire(1, replace(ME, pid=int(sys.argv[2])), now=NOW, period_s=60, gone=lambda _: False).fence)
except LeaseHeld as held:
    print("held by", held.holder.pid)
"""


def test_one_of_many_processes_gets_the_lease(desk: Bench) -> None:
    desk.store.release(desk.lease)
    said = race(RACER, *[(desk.store.url, str(pid)) for pid in (101, 102, 103, 104)])
    holder = desk.reload().holder
    assert holder
    assert sorted(said) == ["2", *[f"held by {holder.pid}"] * 3]
    assert said[holder.pid - 101] == "2"


OPENER = """
import sys
import alembic.command
from tuner.store.store import Store
print("ready", flush=True)
sys.stdin.read()
print(Store.open(sys.argv[1]).studies())
"""


def test_many_processes_may_create_the_same_store(blank_url: str) -> None:
    assert race(OPENER, *[(blank_url,)] * 3) == ["[]"] * 3


CREATOR = """
import sys
from store_records import study
from tuner.store.store import Store, StudyExists
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
try:
    print(store.create_study(study(key=sys.argv[2])).name)
except StudyExists:
    print("exists")
"""


def test_one_of_many_processes_gets_the_name(store_url: str) -> None:
    said = race(CREATOR, *[(store_url, f"k{n}") for n in range(3)])
    assert sorted(said) == ["digits", "exists", "exists"]


def test_a_reader_does_not_wait_for_a_writer(desk: Bench) -> None:
    desk.write(new_trials=(trial(0),))
    with desk.store._writing() as connection:
        connection.exec_driver_sql("UPDATE tuner_trials SET faults = 1")
        other = Store.open(desk.store.url)
        other._reader.pool.dispose()
        assert [t.faults for t in other.trials(desk.study.id)] == [0]
        other.close()
    assert [t.faults for t in desk.store.trials(desk.study.id)] == [1]


def test_a_writer_does_not_wait_for_a_reader(desk: Bench) -> None:
    with desk.store._reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM tuner_trials").scalar() == 0
        desk.write(new_trials=(trial(0),))
        assert connection.exec_driver_sql("SELECT count(*) FROM tuner_trials").scalar() == 0
    assert desk.store.trial_count(desk.study.id) == 1


WRITER = """
import itertools, os, signal, sys
import sqlalchemy as sa
from store_records import NOW, Bench, bump, event, point, trial
from tuner.core.records import Lease
from tuner.store.store import Store
store = Store.open(sys.argv[1])
desk = Bench(store, store.study("digits"), Lease(study_id=1, fence=1, expires_at=NOW))
die_in = sys.argv[2]

def before(_connection, _cursor, statement, *_):
    if die_in in statement and statement.startswith(("INSERT", "UPDATE")) and desk.store.last_seq(1) >= 6:
        os.kill(os.getpid(), signal.SIGKILL)

sa.event.listen(store._engine, "before_cursor_execute", before)
for version in itertools.count(1):
    seq = 2 * version - 1
    one, other = trial(0, version=version), trial(1, version=version)
    points = tuple(point(n, version) for n in (0, 1))
    desk.write(trials=(bump(one), bump(other)), points=points, events=(event(seq), event(seq + 1)))
"""


@pytest.mark.parametrize("die_in", ["tuner_trials", "tuner_metrics", "tuner_events"])
def test_a_kill_inside_a_commit_leaves_nothing_of_it(desk: Bench, die_in: str) -> None:
    desk.write(new_trials=(trial(0), trial(1)))
    with running(WRITER, (desk.store.url, die_in)) as [writer]:
        assert writer.wait(240) == -signal.SIGKILL
    assert [t.version for t in desk.store.trials(desk.study.id)] == [4, 4]
    assert [(p.trial, p.step) for p in desk.store.points(desk.study.id)] == [(t, s) for t in (0, 1) for s in (1, 2, 3)]
    assert desk.store.last_seq(desk.study.id) == 6
    desk.write(trials=(bump(trial(0, version=4)),), events=(event(7, recorded_at=NOW),))  # the next commit works


def test_a_kill_at_any_moment_leaves_only_whole_commits(desk: Bench) -> None:
    """Not at a chosen statement but at a random moment, including the commit's writes to the disk."""
    desk.write(new_trials=(trial(0), trial(1)))
    with running(WRITER, (desk.store.url, "no such table")) as [writer]:
        while desk.store.last_seq(desk.study.id) < 100:
            assert writer.poll() is None
        writer.kill()
        writer.wait(240)
    desk.store.renew(desk.lease, now=NOW, period_s=60)  # waits until the server notices the death
    first, second = desk.store.trials(desk.study.id)
    changes = first.version - 1
    assert first.version == second.version
    assert desk.store.last_seq(desk.study.id) == 2 * changes
    assert len(desk.store.points(desk.study.id)) == 2 * changes
