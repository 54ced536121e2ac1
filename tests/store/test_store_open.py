"""Every problem with a store's address is reported in one line without the password."""

import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_records import bench, trial

from tuner.store import schema
from tuner.store.schema import SCHEMA
from tuner.store.store import Store, StoreError, StoreTooNew, StoreUnreachable, current, masked, upgrade


def test_a_new_file_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "tuner.db"
    desk = bench(Store.open(f"sqlite:///{path}"))
    desk.write(new_trials=(trial(0),))
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == dict.fromkeys(
        ("tuner.db", "tuner.db-wal", "tuner.db-shm"), 0o600
    )
    desk.store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["tuner.db"]


def test_the_rights_of_an_existing_file_are_kept(migrated: Path, tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    path.write_bytes(migrated.read_bytes())
    path.chmod(0o660)
    Store.open(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_commits_are_durable_and_keys_are_enforced(sqlite_url: str) -> None:
    with closing(Store.open(sqlite_url)) as store, store._engine.connect() as connection:
        settings = {name: connection.scalar(sa.text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")}
        settings |= {name: connection.scalar(sa.text(f"PRAGMA {name}")) for name in ("foreign_keys", "busy_timeout")}
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_new_file_that_another_is_writing_to_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses a concurrent switch to WAL at once; two that created a store once failed with 'locked'."""
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, other.execute, ("ROLLBACK",))
        release.start()
        with closing(Store.open(f"sqlite:///{path}")) as store:
            assert store.studies() == []
        release.join()


def test_waiting_for_a_long_reader_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of a copy that is not in WAL mode prevent the switch, but not writers."""
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "copy.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t AS SELECT 1")
        other.execute("BEGIN")
        other.execute("SELECT * FROM t").fetchall()
        with pytest.raises(StoreUnreachable, match="database is locked"):
            Store.open(f"sqlite:///{path}")


def test_a_store_in_memory_lives_as_long_as_it_is_open() -> None:
    desk = bench(Store.open("sqlite://"))
    desk.write(new_trials=(trial(0),))
    assert desk.store.trial_count(desk.study.id) == 1
    desk.store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tuner.db", r"^'tuner.db' is not a database URL: write, for example, sqlite:///tuner.db or"),
        ("", "is not a database URL"),
        ("sqlite:///{here}", "is a directory, name a file in it"),
        ("sqlite:///{here}/no/such/tuner.db", "No such file or directory"),
        ("sqlite:///{here}/text.db", "file is not a database"),
        ("sqlite:///file:{here}/locked.db?mode=ro&uri=true", "readonly database"),
        ("sqlite:///\0", "null byte"),
        ("postgresql+pg8000://ann:secret@db/tuner", r"ann:\*\*\*@db/tuner cannot be used: only SQLite and PostgreSQL"),
        ("postgresql://ann:secret@127.0.0.1:1/tuner", r"ann:\*\*\*@127.0.0.1:1/tuner cannot .* Connection refused"),
        ("postgres://ann@127.0.0.1:1/tuner?password=secret", r"password=%2A%2A%2A cannot .* Connection refused"),
        ("postgresql://ann:secret@/tuner?host=/no/such/socket", "No such file or directory"),
        ("postgresql://ann:secret@127.0.0.1:1/tuner?speed=high", 'invalid connection option "speed"'),
        ("nonsense://ann:secret@db/tuner", "only SQLite"),
        ("://ann:secret@db", "^the store's address is not a database URL"),
        ("sqlite+nodriver:///{here}/x.db", "cannot be used"),
    ],
)
def test_an_unusable_address_is_one_line(tmp_path: Path, url: str, words: str) -> None:
    (tmp_path / "text.db").write_text("this is a letter, not a database\n" * 50)
    (tmp_path / "locked.db").touch()
    with pytest.raises(StoreUnreachable, match=words) as no:
        Store.open(url.replace("{here}", str(tmp_path)))
    assert "\n" not in str(no.value)
    assert "secret" not in str(no.value)


def test_a_masked_address_has_no_password() -> None:
    assert masked("postgresql://ann:secret@db/tuner") == "postgresql://ann:***@db/tuner"
    assert "secret" not in masked("postgresql://db/tuner?user=ann&password=secret")
    assert masked("sqlite:///tuner.db") == "sqlite:///tuner.db"


def test_a_newer_schema_is_refused_and_left_alone(store_url: str) -> None:
    engine = sa.create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE tuner_alembic_version SET version_num = '9999'"))
    engine.dispose()
    for verb in (Store.open, upgrade):
        with pytest.raises(
            StoreTooNew, match=rf"has schema 9999, which this version \(schema {SCHEMA}\) does not know"
        ):
            verb(store_url)
    assert current(store_url) == "9999"


def test_a_file_with_a_newer_schema_is_not_touched(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with sa.create_engine(sqlite_url).begin() as connection:
        connection.execute(sa.text("UPDATE tuner_alembic_version SET version_num = '9999'"))
    before = path.read_bytes()
    with pytest.raises(StoreTooNew):
        Store.open(sqlite_url)
    assert path.read_bytes() == before


def test_current_and_upgrade(blank_url: str, tmp_path: Path) -> None:
    assert current(blank_url) is None
    assert list(tmp_path.iterdir()) == []  # a look creates no file
    assert upgrade(blank_url) == SCHEMA
    assert upgrade(blank_url) == current(blank_url) == SCHEMA


def test_a_database_that_goes_away_is_unreachable_and_may_come_back(sqlite_url: str) -> None:
    store = Store.open(sqlite_url)
    path = Path(store.url.removeprefix("sqlite:///"))
    store.close()
    away = path.rename(path.with_suffix(".away"))
    path.mkdir()
    with pytest.raises(StoreUnreachable, match="unable to open database file"):
        store.studies()
    path.rmdir()
    away.rename(path)
    assert store.studies() == []
    store.close()


def test_opening_a_current_store_loads_no_alembic(store: Store) -> None:
    program = f"""if 1:
        import sys
        from tuner.store.store import Store
        Store.open({store.url!r}).studies()
        heavy = {{"alembic", "mako", "optuna", "botocore", "pandas"}} & sys.modules.keys()
        sys.exit(", ".join(heavy) or None)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_error_is_a_store_error() -> None:
    assert issubclass(StoreUnreachable, StoreError)
    assert issubclass(StoreTooNew, StoreError)
