"""What only a server does: it cuts connections, refuses rights, makes writers wait for each other, outlives clients."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_records import ME, NOW, OTHER, bench, event, later, study, trial

from tests.postgres_server import Server
from tuner.core.records import Change
from tuner.store.store import LeaseLost, Store, StoreUnreachable, masked

ROOT = Path(__file__).parents[2]


def asked_for(url: str, **settings: str) -> str:
    """The address, with settings of the session."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return sa.make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)


def session(engine: sa.Engine, *names: str) -> list[str]:
    with engine.connect() as connection:
        return [connection.scalar(sa.text(f"SHOW {name}")) for name in names]


LIMITS = ("lock_timeout", "idle_in_transaction_session_timeout")


def test_readers_see_one_moment_and_writers_the_latest(store: Store) -> None:
    names = ("transaction_isolation", "transaction_read_only")
    assert session(store._reader, *names) == ["repeatable read", "on"]
    assert session(store._writer, *names) == ["read committed", "off"]


def test_nobody_waits_for_ever_and_a_commit_is_on_disk(store: Store) -> None:
    assert session(store._writer, *LIMITS, "synchronous_commit") == ["30s", "30s", "on"]


def test_limits_of_the_users_own_are_kept(postgres_url: str) -> None:
    url = asked_for(postgres_url, lock_timeout="5s", synchronous_commit="remote_apply")
    with closing(Store.open(url)) as store:
        assert session(store._writer, *LIMITS, "synchronous_commit") == ["5s", "30s", "remote_apply"]


# --- connections that are cut


def test_a_connection_cut_while_it_was_idle_is_not_even_noticed(store: Store, postgres: Server) -> None:
    desk = bench(store)
    assert postgres.disconnect(store.url) > 0
    desk.write(new_trials=(trial(0),))
    assert store.trial_count(desk.study.id) == 1


def test_a_connection_cut_in_mid_transaction_leaves_nothing(store: Store, postgres: Server) -> None:
    desk = bench(store)
    cuts = ["tuner_events"]

    def cut(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if cuts and text.startswith("INSERT") and cuts[0] in text:
            cuts.clear()
            postgres.disconnect(store.url)

    sa.event.listen(store._engine, "before_cursor_execute", cut)
    with pytest.raises(StoreUnreachable, match="terminating connection due to administrator command") as no:
        desk.write(new_trials=(trial(0),), events=(event(1),))
    assert "\n" not in str(no.value)
    assert (store.trial_count(desk.study.id), store.last_seq(desk.study.id)) == (0, 0)
    desk.write(new_trials=(trial(0),), events=(event(1),))
    assert (store.trial_count(desk.study.id), store.last_seq(desk.study.id)) == (1, 1)


def test_a_connection_cut_before_the_commit_is_said(store: Store, postgres: Server) -> None:
    """The last moment at which it can happen and nothing be written."""
    desk = bench(store)

    def write() -> None:
        with store._writing() as connection:
            connection.execute(sa.text("UPDATE tuner_studies SET version = 9"))
            postgres.disconnect(store.url)

    with pytest.raises(StoreUnreachable):
        write()
    assert desk.reload().version == 1


# --- writers that wait for each other


def test_a_request_waits_for_no_commit(store: Store, postgres_url: str) -> None:
    """The engine may sleep in the middle of one: `stop` is recorded all the same."""
    desk = bench(store)
    with (
        closing(Store.open(asked_for(postgres_url, lock_timeout="300ms"))) as other,
        store._writing() as connection,
    ):
        store._check_lease(connection, desk.lease, ())
        assert other.add_request(desk.study.id, "stop", {}, "ann", NOW).id == 1


def test_a_lock_that_is_not_given_is_waited_for_only_so_long(store: Store, postgres_url: str) -> None:
    desk = bench(store)
    with (
        closing(Store.open(asked_for(postgres_url, lock_timeout="100ms"))) as other,
        store._writing() as connection,
    ):
        store._check_lease(connection, desk.lease, ())
        with pytest.raises(StoreUnreachable, match="lock timeout"):
            other.renew(desk.lease, now=later(1), period_s=60)


SLEEPER = """
import sys
import sqlalchemy as sa
from store_records import NOW, event, trial
from tuner.core.records import Change, Lease
from tuner.store.store import LeaseLost, Store, StoreUnreachable
store = Store.open(sys.argv[1])
lease = Lease(study_id=1, fence=1, expires_at=NOW)

def fall_asleep(_connection, cursor, text, *_):
    if "INSERT INTO tuner_events" in text and not asleep:
        asleep.append(True)
        cursor.connection.execute(f"SET idle_in_transaction_session_timeout = '{sys.argv[2]}'")
        print("holds the lock", flush=True)
        sys.stdin.readline()

asleep = []
sa.event.listen(store._engine, "before_cursor_execute", fall_asleep)
for _ in range(2):
    try:
        store.commit(lease, Change(new_trials=(trial(0),), events=(event(1),)), now=NOW)
        print("wrote", flush=True)
    except (LeaseLost, StoreUnreachable) as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def sleeper(store: Store) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start(url: str, patience: str = "30s") -> "subprocess.Popen[str]":
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "store")])
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SLEEPER, url, patience],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_writer_that_sleeps_in_mid_transaction_is_taken_over(
    store: Store, postgres_url: str, sleeper: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """It holds the study's row: the server ends it, the next engine goes on, and the sleeper's change is void."""
    desk = bench(store)
    process = sleeper(postgres_url, patience="1s")  # from when it sleeps on: before, a slow machine may take longer
    assert process.stdout
    assert process.stdout.readline() == "holds the lock\n"
    process.send_signal(signal.SIGSTOP)
    lease = store.acquire(desk.study.id, OTHER, now=later(61), period_s=60, gone=lambda _: False)
    store.commit(lease, Change(events=(event(1),)), now=later(61))
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("wake up\n", timeout=240)
    assert said.split() == ["StoreUnreachable", "LeaseLost"]
    assert (store.trial_count(desk.study.id), store.last_seq(desk.study.id)) == (0, 1)
    assert desk.reload().holder == OTHER


def test_a_writer_that_dies_in_mid_transaction_is_taken_over_at_once(
    store: Store, postgres_url: str, sleeper: Callable[..., "subprocess.Popen[str]"]
) -> None:
    desk = bench(store)
    process = sleeper(postgres_url)
    assert process.stdout
    assert process.stdout.readline() == "holds the lock\n"
    process.kill()
    store.acquire(desk.study.id, OTHER, now=later(1), period_s=60, gone=lambda holder: holder == ME)
    assert store.trial_count(desk.study.id) == 0
    with pytest.raises(LeaseLost):
        desk.write(new_trials=(trial(0),))


# --- servers that refuse


@pytest.fixture
def guest(postgres: Server, postgres_url: str) -> Iterator[str]:
    """The address for a user who owns nothing."""
    name = f"guest_{os.getpid()}"
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield sa.make_url(postgres_url).set(username=name, password="secret").render_as_string(hide_password=False)
    postgres.execute(f"DROP ROLE {name}")


def test_a_user_without_rights_is_told_so(guest: str) -> None:
    with pytest.raises(StoreUnreachable, match=r"guest_.*\*\*\*.* cannot be used: permission denied for table") as no:
        Store.open(guest)
    assert "secret" not in str(no.value)
    assert "\n" not in str(no.value)


def test_a_database_that_may_only_be_read(store: Store, postgres_url: str) -> None:
    """A standby: what only looks goes on."""
    desk = bench(store)
    with closing(Store.open(asked_for(postgres_url, default_transaction_read_only="on"))) as standby:
        with pytest.raises(StoreUnreachable, match="read-only transaction"):
            standby.create_study(study("plain"))
        assert standby.study("digits") == desk.reload()


def test_a_database_that_is_not_there(postgres: Server) -> None:
    url = postgres.url.set(database="nowhere").render_as_string(hide_password=False)
    with pytest.raises(StoreUnreachable, match='database "nowhere" does not exist') as no:
        Store.open(url)
    assert "\n" not in str(no.value)


def test_a_driver_that_is_not_installed_is_one_line() -> None:
    program = """if 1:
        import sys
        sys.modules["psycopg"] = None
        from tuner.cli.main import main
        sys.exit(main(["--store", "postgresql://ann:secret@db/tuner", "status"]))
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        "tuner: the store postgresql://ann:***@db/tuner cannot be used: "
        "install the extra postgres: pip install 'spot-tuner[postgres]'\n"
    )


def test_an_address_is_printed_without_its_password() -> None:
    for url in ("postgres://ann:secret@db/tuner", "postgresql+psycopg://db/tuner?user=ann&password=secret"):
        assert "secret" not in masked(url)
        assert masked(url).startswith("postgresql")
