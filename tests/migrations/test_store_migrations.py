"""The revisions lead to exactly the tables that the code expects, beside tables that are not ours."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tuner.store import schema
from tuner.store.store import Store
from tuner.store.tables import VERSION_TABLE, metadata

ROOT = Path(__file__).parents[2]


@pytest.fixture
def migrated(store_url: str) -> Iterator[sa.Engine]:
    engine = schema.connect(store_url)
    yield engine
    engine.dispose()


SQLITE = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
POSTGRESQL = """
SELECT table_name, column_name || ' ' || data_type || coalesce(character_maximum_length\\:\\:text, '') || is_nullable
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name LIKE 'tuner\\_%'
UNION ALL SELECT conrelid\\:\\:regclass\\:\\:text, conname || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE conrelid\\:\\:regclass\\:\\:text LIKE 'tuner\\_%'
UNION ALL SELECT tablename, indexdef FROM pg_indexes WHERE tablename LIKE 'tuner\\_%'
"""


def definitions(engine: sa.Engine) -> set[tuple[str, str]]:
    """What the database says each table, constraint and index is, as clauses: their order is of no importance."""
    with engine.connect() as connection:
        found = connection.execute(sa.text(SQLITE if engine.dialect.name == "sqlite" else POSTGRESQL)).all()
    # SQLite writes a column that was added later onto the line of the one before
    lines = [(name, line) for name, sql in found for line in re.split(r"\n|, (?=\w+ [A-Z])", sql)]
    clauses = {(name, line.strip().rstrip(",")) for name, line in lines}
    return {(name, clause) for name, clause in clauses if name != VERSION_TABLE}


def test_the_revisions_lead_to_the_tables_of_the_code(migrated: sa.Engine) -> None:
    there = definitions(migrated)
    metadata.drop_all(migrated)
    assert definitions(migrated) == set()
    metadata.create_all(migrated)
    assert there == definitions(migrated)


def test_alembic_finds_nothing_to_do(migrated: sa.Engine) -> None:
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_there_is_one_head_and_the_code_knows_it(migrated: sa.Engine) -> None:
    with migrated.connect() as connection:
        scripts = ScriptDirectory.from_config(schema.config(connection))
        assert scripts.get_heads() == [schema.SCHEMA]
        assert schema.version(connection) == schema.SCHEMA


def test_what_is_not_ours_is_neither_needed_nor_touched(blank_url: str) -> None:
    theirs = sa.create_engine(blank_url)
    with theirs.begin() as connection:
        connection.execute(sa.text("CREATE TABLE trials (trial_id INTEGER PRIMARY KEY, state VARCHAR(8))"))
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('v3.2.0.a')"))
    Store.open(blank_url).close()
    with theirs.connect() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "v3.2.0.a"
        names = set(sa.inspect(connection).get_table_names())
    theirs.dispose()
    assert names == {"trials", "alembic_version", VERSION_TABLE, *metadata.tables}


def test_a_migration_that_fails_leaves_nothing(blank_url: str) -> None:
    """An index of that name is in the way of the last table; the first ones must not stay."""
    engine = sa.create_engine(blank_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE theirs (study_id INTEGER)"))
        connection.execute(sa.text("CREATE INDEX ix_tuner_requests_pending ON theirs (study_id)"))
    with pytest.raises((schema.StoreUnreachable, sa.exc.ProgrammingError), match="ix_tuner_requests_pending"):
        Store.open(blank_url)
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["theirs"]
    engine.dispose()


def test_an_installed_package_carries_its_revisions(tmp_path: Path) -> None:
    """As in the wheel: `migrations/` inside the package, and no source tree next to it."""
    shutil.copytree(ROOT / "tuner", tmp_path / "tuner", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "migrations", tmp_path / "tuner" / "_migrations")
    program = "from tuner.store import store; print(store.__file__, store.upgrade('sqlite:///new.db'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(tmp_path / "tuner" / "store" / "store.py"), schema.SCHEMA], done.stderr
