"""What all tests share: databases of both kinds, migrated once and then copied, and a Hypothesis that leaves no chance.

No test may fail because the machine is slow or the dice fell badly: Hypothesis draws the same examples every time and
has no deadline, and a test that waits for a process waits for a condition, with a limit that only a fault can reach.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import machine, postgres_server
from tuner.store.store import Store

TESTS = Path(__file__).parent
SLOW_FOLDERS = {
    *("chaos", "cloud", "conformance", "endtoend", "hostile", "local", "postgres", "rehearse", "simulation", "studies"),
    *("toolkit", "training"),
}

machine.forget(os.environ)
machine.draw_alike()
settings.register_profile("certain", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("certain")

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C; what supervises a CI
# may have them ignore SIGTERM.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs a server, and the folders that run whole sweeps, jobs as processes, or soaks."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        on_postgres = "postgresql" in parameters or "postgres" in getattr(item, "fixturenames", ())
        if folder in SLOW_FOLDERS or on_postgres:
            item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Torch brings gigabytes: its tests skip without it. CI installs it, and there a skip would hide a fault."""
    if item.get_closest_marker("torch") is None or find_spec("torch") is not None:
        return
    if os.environ.get("TUNER_TEST_TORCH") == "1":
        pytest.fail("TUNER_TEST_TORCH=1, but torch is not installed")
    pytest.skip("torch is not installed (extra pytorch)")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with our tables and no rows; to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A PostgreSQL server; each worker has its own. Tests that stop it use `own_postgres`."""
    try:
        running = postgres_server.server()
    except postgres_server.NoServer as reason:
        pytest.skip(str(reason))
    yield running
    running.close()


@pytest.fixture(scope="session")
def postgres_template(postgres: postgres_server.Server) -> str:
    """A PostgreSQL database with our tables and no rows; to be copied."""
    url = postgres.make()
    Store.open(url).close()
    return url


@pytest.fixture
def postgres_url(postgres: postgres_server.Server, postgres_template: str) -> Iterator[str]:
    url = postgres.make(postgres_template)
    yield url
    postgres.drop(url)


@pytest.fixture
def sqlite_url(migrated: Path, tmp_path: Path) -> str:
    path = tmp_path / "tuner.db"
    shutil.copy(migrated, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def blank_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind with nothing in it; SQLite's is not even there."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/blank.db"
        return
    server: postgres_server.Server = request.getfixturevalue("postgres")
    url = server.make()
    yield url
    server.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty store of each kind."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url
