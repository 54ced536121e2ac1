"""The revisions lead to exactly the tables that the code expects, beside tables that are not ours."""

import shutil
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tuner import store_schema
from tuner.store import Store
from tuner.tables import VERSION_TABLE, metadata

ROOT = Path(__file__).parents[2]


def migrated() -> sa.Engine:
    engine = store_schema.connect("sqlite://")
    store_schema.migrate(engine, "memory")
    return engine


def definitions(engine: sa.Engine) -> dict[str, list[str]]:
    """What the database says each table and index is, as a set of clauses: their order is of no importance."""
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
    return {name: sorted(line.strip().rstrip(",") for line in sql.splitlines()) for name, sql in found}


def test_the_revisions_lead_to_the_tables_of_the_code() -> None:
    fresh = sa.create_engine("sqlite://")
    metadata.create_all(fresh)
    there = definitions(migrated())
    del there[VERSION_TABLE]
    assert there == definitions(fresh)


def test_alembic_finds_nothing_to_do() -> None:
    with migrated().connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_there_is_one_head_and_the_code_knows_it() -> None:
    with migrated().connect() as connection:
        scripts = ScriptDirectory.from_config(store_schema.config(connection))
        assert scripts.get_heads() == [store_schema.SCHEMA]
        assert store_schema.version(connection) == store_schema.SCHEMA


def test_what_is_not_ours_is_neither_needed_nor_touched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    theirs = sa.create_engine(url)
    with theirs.begin() as connection:
        connection.execute(sa.text("CREATE TABLE trials (trial_id INTEGER PRIMARY KEY, state VARCHAR(8))"))
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('v3.2.0.a')"))
    Store.open(url).close()
    with theirs.connect() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "v3.2.0.a"
        names = set(sa.inspect(connection).get_table_names())
    theirs.dispose()
    assert names == {"trials", "alembic_version", VERSION_TABLE, *metadata.tables}


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """An index of that name is in the way of the last table; the first ones must not stay."""
    url = f"sqlite:///{tmp_path}/torn.db"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE theirs (study_id INTEGER)"))
        connection.execute(sa.text("CREATE INDEX ix_tuner_requests_pending ON theirs (study_id)"))
    try:
        Store.open(url)
    except store_schema.StoreUnreachable as error:
        assert "ix_tuner_requests_pending" in str(error)  # noqa: PT017 - what follows is the point
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["theirs"]
    engine.dispose()


def test_an_installed_package_carries_its_revisions(tmp_path: Path) -> None:
    """As in the wheel: `migrations/` inside the package, and no source tree beside it."""
    shutil.copytree(ROOT / "tuner", tmp_path / "tuner", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "migrations", tmp_path / "tuner" / "_migrations")
    program = "from tuner import store; print(store.__file__, store.upgrade('sqlite:///new.db'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(tmp_path / "tuner" / "store.py"), "0001"], done.stderr
