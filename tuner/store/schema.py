"""Connects to a database, SQLite or PostgreSQL, and brings its schema up to date.

Rules: a reader sees one moment and blocks nobody. On SQLite a writer takes the write lock when it begins, so that it
cannot fail halfway for a missing lock; on PostgreSQL it first locks the row of its study (`store`). Every wait has a
limit: for a server, for a lock, and for a writer that hangs inside a transaction. A commit is on disk when it returns.
Alembic (half a second of imports) is loaded only if the schema is behind. Every problem with a store's address is
reported in one line, without a password.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import StaticPool

from tuner.core.clock import SystemClock
from tuner.core.log import logger_of
from tuner.core.records import Holder
from tuner.store.tables import VERSION_TABLE, studies

if TYPE_CHECKING:
    from alembic.config import Config

_LOG = logger_of("store")
# The newest revision in `migrations/`; a test compares the two.
SCHEMA = "0003"
_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "_migrations"
# The folder of revisions: inside an installed package, next to the package in the source tree.
MIGRATIONS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "migrations"
BUSY_TIMEOUT_S = 30.0
_IN_MEMORY = (None, "", ":memory:")
_EXAMPLE = "sqlite:///tuner.db"
_EXAMPLES = f"{_EXAMPLE} or postgresql://user@host/database"
_POSTGRESQL = ("postgresql", "postgresql+psycopg")
# A server that vanished is given up after half a minute, not after the two hours of TCP.
_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# Limits for lock waits and for idle writers, unless the server, the role or the address sets them. Commits must survive
# a crash of the server, because jobs are started once a commit returns.
_SESSION = f"""
SELECT set_config(name, CASE name WHEN 'synchronous_commit' THEN 'on' ELSE '{BUSY_TIMEOUT_S:.0f}s' END, false)
FROM pg_settings
WHERE name IN ('lock_timeout', 'idle_in_transaction_session_timeout') AND setting = '0'
   OR name = 'synchronous_commit' AND setting = 'off'
"""  # noqa: S608 - constants
# An arbitrary number: the advisory lock of the process that migrates the schema.
_MIGRATION_LOCK = 7_305_230_113
# SQLSTATEs of a database that we may not use: missing rights, or a missing schema.
_NOT_ALLOWED = ("42501", "3F000")


class StoreError(Exception):
    """An operation that the store refused."""


class StoreUnreachable(StoreError):  # noqa: N818 - named by its decision
    """No database can be used at this address."""


class StoreTooNew(StoreError):  # noqa: N818
    """The schema was written by a later version of this program."""


def masked(url: str) -> str:
    """`url` without passwords, for printing."""
    parsed = _parse(url)
    secret = {key: "***" for key in parsed.query if "password" in key.lower()}
    return parsed.update_query_dict(secret).render_as_string(hide_password=True)


class StoreInUse(StoreError):  # noqa: N818
    """An engine of another version drives a study: a new schema would break it in the middle of its work."""


def not_known_gone(_: Holder) -> bool:
    """In doubt the process that holds a lease is there."""
    return False


@contextmanager
def translated(shown: str) -> Iterator[None]:
    """Translate operating errors to StoreUnreachable; our own errors (a broken constraint) pass through."""
    try:
        yield
    except exc.DBAPIError as error:
        ours = isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError)
        # no statement: the connection itself was refused
        if ours and error.statement is not None and getattr(error.orig, "sqlstate", None) not in _NOT_ALLOWED:
            raise
        words = " ".join(str(error.orig).split())
        raise StoreUnreachable(f"the store {shown} cannot be used: {words}") from error
    except exc.TimeoutError as error:
        raise StoreUnreachable(f"the store {shown} cannot be used: no free connection") from error


def connect(url: str) -> sa.Engine:
    """An SQLAlchemy engine for the database at `url`; creates a missing file, and runs no statement yet."""
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
    # a database in memory lives in its one connection
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
    """The same engine with transactions that see the database at the moment of their first read."""
    if engine.dialect.name == "sqlite":
        return engine  # a deferred transaction in WAL mode does
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def for_writing(engine: sa.Engine) -> sa.Engine:
    """The same engine with transactions that take SQLite's write lock when they begin."""
    return engine.execution_options(tuner_writes=True)


def version(connection: sa.Connection) -> str | None:
    """The schema's revision; None in a database without our tables."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
    return found


def migrate(engine: sa.Engine, shown: str, gone: Callable[[Holder], bool] = not_known_gone) -> None:
    """Bring the schema to `SCHEMA` in one transaction; does nothing if it is there already.

    `gone` says that the holder of a lease is certainly dead. Raises StoreUnreachable, StoreTooNew, StoreInUse.
    """
    with translated(shown):
        with engine.connect() as connection:
            if version(connection) == SCHEMA:
                return
        with for_writing(engine).connect() as connection, _schema_to_itself(connection):
            was = version(connection)
            _run_migrations(connection, shown, gone)
            _LOG.info("schema %s became %s at %s", was, SCHEMA, shown)


def _refuse_under_lease(connection: sa.Connection, store: str, gone: Callable[[Holder], bool]) -> None:
    """Raise StoreInUse for a live lease: its holder works with the schema as it is. Schema 0001 has leases too."""
    c = studies.c
    held = sa.select(c.name, c.holder_host, c.holder_boot_id, c.holder_pid, c.holder_started, c.lease_expires_at)
    for name, host, boot_id, pid, started, until in connection.execute(
        held.where(c.lease_expires_at > SystemClock().now()).order_by(c.id)
    ):
        holder = Holder(host=host, boot_id=boot_id, pid=pid, started=started)
        if not gone(holder):
            raise StoreInUse(
                f"{store}, and another version of the program, {holder}, drives study {name} in it: end that process "
                f"(kill {pid} there, its jobs go on), then try again; its lease runs until {until:%H:%M:%S} UTC"
            )


@contextmanager
def _schema_to_itself(connection: sa.Connection) -> Iterator[None]:
    """A transaction in which no other process changes the schema."""
    if connection.dialect.name != "sqlite":
        with connection.begin():
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            yield
        return
    # SQLite changes a table by creating a new one, so foreign keys are switched off meanwhile. The switch only works
    # outside a transaction, and `connection` would begin one.
    switch = connection.connection.cursor()
    switch.execute("PRAGMA foreign_keys = OFF")
    try:
        with connection.begin():
            yield
            dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            assert not dangling, f"a migration left rows without what they belong to: {dangling[:3]}"
    finally:
        switch.execute("PRAGMA foreign_keys = ON")


def upgrade(url: str, gone: Callable[[Holder], bool] = not_known_gone) -> str:
    """Bring the store at `url` up to date; returns its revision. Raises what `migrate` raises."""
    engine = connect(url)
    try:
        migrate(engine, masked(url), gone)
    finally:
        engine.dispose()
    return SCHEMA


def current(url: str) -> str | None:
    """The revision of the store at `url`; None if it is empty or missing. Raises StoreUnreachable."""
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
    from alembic.config import Config  # noqa: PLC0415 - slow to load, rarely needed

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    return settings


def _run_migrations(connection: sa.Connection, shown: str, gone: Callable[[Holder], bool]) -> None:
    from alembic import command  # noqa: PLC0415 - slow to load, rarely needed
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
        if found != SCHEMA:
            _refuse_under_lease(connection, f"the store {shown} has schema {found}", gone)
    command.upgrade(settings, "head")  # does nothing if another process was faster


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        shown = "the store's address" if "@" in url or "password" in url.lower() else f"{url!r}"
        raise StoreUnreachable(f"{shown} is not a database URL: write, for example, {_EXAMPLES}") from None
    # libpq and hosting providers use both names, SQLAlchemy only one
    return parsed.set(drivername="postgresql") if parsed.drivername == "postgres" else parsed


def forgets(url: str) -> bool:
    """Whether it is a database in memory, which is lost with its process while jobs continue."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite":
        return False
    return parsed.database in _IN_MEMORY or ":memory:" in str(parsed.database) or parsed.query.get("mode") == "memory"


def _file(url: sa.URL) -> Path | None:
    """The SQLite file, if the address is a plain path."""
    if url.get_backend_name() != "sqlite" or url.database in _IN_MEMORY or str(url.database).startswith("file:"):
        return None
    return Path(str(url.database))


def _make_file(path: Path, shown: str) -> None:
    """Create the database's file, readable by its owner only; an existing file keeps its rights."""
    if path.is_dir():
        raise StoreUnreachable(f"the store {shown} cannot be used: {path} is a directory, name a file in it")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except (OSError, ValueError) as error:
        raise StoreUnreachable(f"the store {shown} cannot be used: {error}") from error


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we send BEGIN ourselves, see `_begin`
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    _write_ahead(connection)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL mode permanently; does nothing if it is in that mode.

    If two processes switch at the same time, SQLite refuses one of them at once, without regard to the timeout. That
    process takes an exclusive lock, waiting for it as any writer does, and tries again: the other one is done by then.
    A reader that holds the file for longer than that wait is an error, so no process tries for ever.
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
    """Settings by a statement, since proxies refuse them as options of the connection."""
    connection.cursor().execute(_SESSION)
    connection.commit()


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("tuner_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def near(name: str, known: list[str]) -> str:
    """A hint for an unknown name: the most similar names, or the first five."""
    similar = get_close_matches(name, known) or sorted(known)[:5]
    return f"; there are: {', '.join(similar)}" if similar else "; the store has none yet"
