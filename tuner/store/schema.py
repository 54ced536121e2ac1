"""Reaching a database, SQLite's or PostgreSQL's, and bringing its schema up to date.

Rules: a reader sees one moment and never holds anybody up. On SQLite a writer takes the write lock at once, so that it
never finds out halfway that it cannot write; on PostgreSQL it locks the row of its study first (`store`). Nobody waits
for ever: neither for a server, nor for a lock, nor for a writer that fell asleep in mid-transaction. A commit is on
disk when it returns. Alembic (half a second of imports) is loaded only where the schema is behind. Whatever can be
wrong with a store's address is one line, and no password is ever part of it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import StaticPool

from tuner.core.log import logger_of
from tuner.store.tables import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

_LOG = logger_of("store")
# The newest revision in `migrations/`; a test holds the two together.
SCHEMA = "0003"
BUSY_TIMEOUT_S = 30.0
_IN_MEMORY = (None, "", ":memory:")
_EXAMPLE = "sqlite:///tuner.db"
_EXAMPLES = f"{_EXAMPLE} or postgresql://user@host/database"
_POSTGRESQL = ("postgresql", "postgresql+psycopg")
# A server that vanished without a word is given up after half a minute, not after TCP's two hours.
_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# No endless wait for a lock, and no lock held by a writer that sleeps: where neither server, role nor address set a
# limit. And no commit that a crash of the server takes back: jobs are started on its word.
_SESSION = f"""
SELECT set_config(name, CASE name WHEN 'synchronous_commit' THEN 'on' ELSE '{BUSY_TIMEOUT_S:.0f}s' END, false)
FROM pg_settings
WHERE name IN ('lock_timeout', 'idle_in_transaction_session_timeout') AND setting = '0'
   OR name = 'synchronous_commit' AND setting = 'off'
"""  # noqa: S608 - constants
# Any number of ours: who brings the schema up to date holds it.
_MIGRATION_LOCK = 7_305_230_113
# SQLSTATEs of a database that does not let us work: no right to do it, no schema to do it in.
_NOT_ALLOWED = ("42501", "3F000")


class StoreError(Exception):
    """The store said no."""


class StoreUnreachable(StoreError):  # noqa: N818 - it says what is the matter
    """No database can be used at this address."""


class StoreTooNew(StoreError):  # noqa: N818
    """The schema was written by a later version of this program."""


def masked(url: str) -> str:
    """`url` as it may be printed: without passwords."""
    parsed = _parse(url)
    secret = {key: "***" for key in parsed.query if "password" in key.lower()}
    return parsed.update_query_dict(secret).render_as_string(hide_password=True)


@contextmanager
def translated(shown: str) -> Iterator[None]:
    """What the database cannot do becomes StoreUnreachable; what we did wrong (a broken constraint) stays as it is."""
    try:
        yield
    except exc.DBAPIError as error:
        ours = isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError)
        # without a statement it never came to one: the address itself was refused
        if ours and error.statement is not None and getattr(error.orig, "sqlstate", None) not in _NOT_ALLOWED:
            raise
        words = " ".join(str(error.orig).split())
        raise StoreUnreachable(f"the store {shown} cannot be used: {words}") from error
    except exc.TimeoutError as error:
        raise StoreUnreachable(f"the store {shown} cannot be used: no free connection") from error


def connect(url: str) -> sa.Engine:
    """An engine on the database at `url`, whose file is created if need be; nothing is looked at yet."""
    parsed, shown = _parse(url), masked(url)
    try:
        if parsed.drivername in _POSTGRESQL:
            return _connect_postgresql(parsed, shown)
        if parsed.get_backend_name() == "sqlite":
            return _connect_sqlite(parsed, shown)
    except (exc.ArgumentError, ImportError, TypeError, ValueError) as error:
        raise StoreUnreachable(f"the store {shown} cannot be used: {error}") from error
    raise StoreUnreachable(
        f"the store {shown} cannot be used: only SQLite and PostgreSQL (by psycopg) are, for example {_EXAMPLES}"
    )


def _connect_sqlite(url: sa.URL, shown: str) -> sa.Engine:
    if (file := _file(url)) is not None:
        _make_file(file, shown)
    # a database in memory is its one connection
    pool: dict[str, Any] = {"poolclass": StaticPool} if url.database in _IN_MEMORY else {}
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, **pool)
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _connect_postgresql(url: sa.URL, shown: str) -> sa.Engine:
    try:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            connect_args={name: value for name, value in _PATIENCE.items() if name not in url.query},
        )
    except ImportError as error:
        raise StoreUnreachable(
            f"the store {shown} cannot be used: install the extra postgres: pip install 'spot-tuner[postgres]'"
        ) from error
    sa.event.listen(engine, "connect", _settle)
    return engine


def for_reading(engine: sa.Engine) -> sa.Engine:
    """The same engine, whose transactions see the database as it was when they first looked."""
    if engine.dialect.name == "sqlite":
        return engine  # a deferred transaction in WAL mode does
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def for_writing(engine: sa.Engine) -> sa.Engine:
    """The same engine, whose transactions take SQLite's write lock when they begin."""
    return engine.execution_options(tuner_writes=True)


def version(connection: sa.Connection) -> str | None:
    """The schema's revision; None in a database that has none of our tables."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
    return found


def migrate(engine: sa.Engine, shown: str) -> None:
    """Bring the schema to `SCHEMA`; does nothing where it is. All of it happens in one transaction, or nothing."""
    with translated(shown):
        with engine.connect() as connection:
            if version(connection) == SCHEMA:
                return
        with for_writing(engine).connect() as connection, _schema_to_itself(connection):
            was = version(connection)
            _run_migrations(connection, shown)
            _LOG.info("schema %s became %s at %s", was, SCHEMA, shown)


@contextmanager
def _schema_to_itself(connection: sa.Connection) -> Iterator[None]:
    """A transaction in which nobody else changes the schema."""
    if connection.dialect.name != "sqlite":
        with connection.begin():
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            yield
        return
    # SQLite changes a table by building it anew: rows that point to it must not be in the way. The switch works
    # outside of a transaction alone, hence not through `connection`, which would begin one.
    switch = connection.connection.cursor()
    switch.execute("PRAGMA foreign_keys = OFF")
    try:
        with connection.begin():
            yield
            dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            assert not dangling, f"a migration left rows without what they belong to: {dangling[:3]}"
    finally:
        switch.execute("PRAGMA foreign_keys = ON")


def upgrade(url: str) -> str:
    """Bring the store at `url` up to date; returns its revision. Errors: StoreUnreachable, StoreTooNew."""
    engine = connect(url)
    try:
        migrate(engine, masked(url))
    finally:
        engine.dispose()
    return SCHEMA


def current(url: str) -> str | None:
    """The revision of the store at `url`; None where it is empty or not there yet. Errors: StoreUnreachable."""
    file = _file(_parse(url))
    if file is not None and not file.exists():
        return None
    engine = connect(url)
    try:
        with translated(masked(url)), engine.connect() as connection:
            return version(connection)
    finally:
        engine.dispose()


def config(connection: sa.Connection) -> "Config":
    """Alembic's configuration for `connection`; there is no alembic.ini."""
    from alembic.config import Config  # noqa: PLC0415 - slow to load, and seldom needed

    settings = Config()
    settings.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    return settings


def _run_migrations(connection: sa.Connection, shown: str) -> None:
    from alembic import command  # noqa: PLC0415 - slow to load, and seldom needed
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    settings = config(connection)
    found = version(connection)
    if found is not None:
        try:
            ScriptDirectory.from_config(settings).get_revision(found)
        except CommandError as error:
            raise StoreTooNew(
                f"the store {shown} has schema {found}, which this version (schema {SCHEMA}) does not know: "
                f"use the program version that wrote it, or a later one"
            ) from error
    command.upgrade(settings, "head")  # nothing, if another process was faster


def _migrations() -> Path:
    """The folder of revisions: inside the package once installed, beside it in the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        shown = "the store's address" if "@" in url or "password" in url.lower() else f"{url!r}"
        raise StoreUnreachable(f"{shown} is not a database URL: write, for example, {_EXAMPLES}") from None
    # libpq and those who hand out addresses know both names, SQLAlchemy one
    return parsed.set(drivername="postgresql") if parsed.drivername == "postgres" else parsed


def forgets(url: str) -> bool:
    """Whether it is a database in memory, which is gone with its process while jobs go on."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite":
        return False
    return parsed.database in _IN_MEMORY or ":memory:" in str(parsed.database) or parsed.query.get("mode") == "memory"


def _file(url: sa.URL) -> Path | None:
    """SQLite's file, where the address is a plain path."""
    if url.get_backend_name() != "sqlite" or url.database in _IN_MEMORY or str(url.database).startswith("file:"):
        return None
    return Path(str(url.database))


def _make_file(path: Path, shown: str) -> None:
    """Create the database's file for its owner alone; what is there already keeps its rights."""
    if path.is_dir():
        raise StoreUnreachable(f"the store {shown} cannot be used: {path} is a directory, name a file in it")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except (OSError, ValueError) as error:
        raise StoreUnreachable(f"the store {shown} cannot be used: {error}") from error


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours to say, see `_begin`
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    _write_ahead(connection)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL mode, for good; does nothing where it is.

    Of two who switch at the same time SQLite refuses one at once, whatever its timeout: that one waits, as any writer
    does, until it had the file to itself, and tries again. The other one is done by then, and so is whoever read: one
    who reads for longer than a writer waits is an error, and nobody tries for ever.
    """
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
        else:
            return


def _settle(connection: DBAPIConnection, _record: object) -> None:
    """Settings of a session rather than of its start: proxies refuse the latter."""
    connection.cursor().execute(_SESSION)
    connection.commit()


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("tuner_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def near(name: str, known: list[str]) -> str:
    """A hint for a name that is not there: the most similar ones, or all if they are few."""
    alike = get_close_matches(name, known) or sorted(known)[:5]
    return f"; there are: {', '.join(alike)}" if alike else "; the store has none yet"
