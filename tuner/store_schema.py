"""Reaching a database and bringing its schema up to date.

Rules: a reader begins a deferred transaction and so never holds anybody up; a writer takes the write lock at once, so
that it never finds out halfway that it cannot write. A commit is on disk when it returns. Alembic (half a second of
imports) is loaded only where the schema is behind. Whatever can be wrong with a store's address is one line, and no
password is ever part of it.
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
from sqlalchemy.pool import StaticPool

from tuner.tables import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

# The newest revision in `migrations/`; a test holds the two together.
SCHEMA = "0001"
BUSY_TIMEOUT_S = 30.0
_IN_MEMORY = (None, "", ":memory:")
_EXAMPLE = "sqlite:///tuner.db"


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
    except (exc.IntegrityError, exc.ProgrammingError, exc.DataError):
        raise
    except exc.DBAPIError as error:
        raise StoreUnreachable(f"the store {shown} cannot be used: {error.orig}") from error
    except exc.TimeoutError as error:
        raise StoreUnreachable(f"the store {shown} cannot be used: no free connection") from error


def connect(url: str) -> sa.Engine:
    """An engine on the database at `url`, whose file is created if need be; nothing is looked at yet."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite":
        raise StoreUnreachable(f"the store {masked(url)} cannot be used: only SQLite is so far, for example {_EXAMPLE}")
    if (file := _file(parsed)) is not None:
        _make_file(file, masked(url))
    # a database in memory is its one connection
    pool: dict[str, Any] = {"poolclass": StaticPool} if parsed.database in _IN_MEMORY else {}
    try:
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, **pool)
    except (exc.ArgumentError, ImportError, TypeError, ValueError) as error:
        raise StoreUnreachable(f"the store {masked(url)} cannot be used: {error}") from error
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    return engine


def for_writing(engine: sa.Engine) -> sa.Engine:
    """The same engine, whose transactions take the write lock when they begin."""
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
        with for_writing(engine).begin() as connection:
            _run_migrations(connection, shown)


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
    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _parse(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        shown = "the store's address" if "@" in url or "password" in url.lower() else f"{url!r}"
        raise StoreUnreachable(f"{shown} is not a database URL: write, for example, {_EXAMPLE}") from None


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
    connection.execute("PRAGMA journal_mode = WAL")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("tuner_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def near(name: str, known: list[str]) -> str:
    """A hint for a name that is not there: the most similar ones, or all if they are few."""
    alike = get_close_matches(name, known) or sorted(known)[:5]
    return f"; there are: {', '.join(alike)}" if alike else "; the store has none yet"
