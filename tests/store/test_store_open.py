"""Whatever may be wrong with a store's address is one line, and a password is in none of them."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_records import bench, trial

from tuner.store import Store, StoreError, StoreTooNew, StoreUnreachable, current, masked, upgrade


def test_a_new_file_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "tuner.db"
    desk = bench(Store.open(f"sqlite:///{path}"))
    desk.write(new_trials=(trial(0),))
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == dict.fromkeys(
        ("tuner.db", "tuner.db-wal", "tuner.db-shm"), 0o600
    )
    desk.store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["tuner.db"]


def test_the_rights_of_an_old_file_are_its_owners_business(migrated: Path, tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    path.write_bytes(migrated.read_bytes())
    path.chmod(0o660)
    Store.open(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_commits_are_durable_and_keys_are_enforced(store: Store) -> None:
    with store._reader.connect() as connection:
        settings = {name: connection.scalar(sa.text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")}
        settings |= {name: connection.scalar(sa.text(f"PRAGMA {name}")) for name in ("foreign_keys", "busy_timeout")}
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_store_in_memory_lives_as_long_as_it_is_open() -> None:
    desk = bench(Store.open("sqlite://"))
    desk.write(new_trials=(trial(0),))
    assert desk.store.trial_count(desk.study.id) == 1
    desk.store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tuner.db", r"^'tuner.db' is not a database URL: write, for example, sqlite:///tuner.db$"),
        ("", "is not a database URL"),
        ("sqlite:///{here}", "is a directory, name a file in it"),
        ("sqlite:///{here}/no/such/tuner.db", "No such file or directory"),
        ("sqlite:///{here}/text.db", "file is not a database"),
        ("sqlite:///file:{here}/locked.db?mode=ro&uri=true", "readonly database"),
        ("sqlite:///\0", "null byte"),
        ("postgresql://ann:secret@db/tuner", r"postgresql://ann:\*\*\*@db/tuner cannot be used: only SQLite"),
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


def test_a_schema_from_the_future_is_left_alone(migrated: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    path.write_bytes(migrated.read_bytes())
    with sa.create_engine(f"sqlite:///{path}").begin() as connection:
        connection.execute(sa.text("UPDATE tuner_alembic_version SET version_num = '9999'"))
    before = path.read_bytes()
    for verb in (Store.open, upgrade):
        with pytest.raises(StoreTooNew, match=r"has schema 9999, which this version \(schema 0001\) does not know"):
            verb(f"sqlite:///{path}")
    assert current(f"sqlite:///{path}") == "9999"
    assert path.read_bytes() == before


def test_current_and_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    assert current(url) is None
    assert list(tmp_path.iterdir()) == []  # to look is not to create
    assert upgrade(url) == "0001"
    assert upgrade(url) == current(url) == "0001"


def test_a_database_that_goes_away_is_unreachable_and_may_come_back(store: Store) -> None:
    path = Path(store.url.removeprefix("sqlite:///"))
    store.close()
    away = path.rename(path.with_suffix(".away"))
    path.mkdir()
    with pytest.raises(StoreUnreachable, match="unable to open database file"):
        store.studies()
    path.rmdir()
    away.rename(path)
    assert store.studies() == []


def test_opening_a_current_store_loads_no_alembic(store: Store) -> None:
    program = f"""if 1:
        import sys
        from tuner.store import Store
        Store.open({store.url!r}).studies()
        heavy = {{"alembic", "mako", "optuna", "botocore", "pandas"}} & sys.modules.keys()
        sys.exit(", ".join(heavy) or None)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_error_is_a_store_error() -> None:
    assert issubclass(StoreUnreachable, StoreError)
    assert issubclass(StoreTooNew, StoreError)
