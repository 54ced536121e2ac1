"""A store is not brought to a new schema while an engine of another version drives a study in it."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tuner.cli import main
from tuner.core.clock import SystemClock
from tuner.core.records import Holder
from tuner.operations.lease_holder import this_process
from tuner.store import schema as store_schema
from tuner.store import tables
from tuner.store.schema import SCHEMA
from tuner.store.store import Store, StoreInUse, StoreTooNew, current, upgrade

FIXTURES = Path(__file__).parent / "fixtures"
ELSEWHERE = Holder(host="lab", boot_id="b", pid=4711, started="1")


def hold(url: str, holder: Holder, *, for_s: float = 60.0) -> None:
    """As an engine of an earlier version does."""
    engine = sa.create_engine(url)
    values = {f"holder_{name}": getattr(holder, name) for name in ("host", "boot_id", "pid", "started")}
    values["lease_expires_at"] = SystemClock().now() + timedelta(seconds=for_s)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.studies).where(tables.studies.c.name == "half").values(values))
    engine.dispose()


@pytest.fixture(params=[file.stem for file in sorted(FIXTURES.glob("*.sql")) if file.stem < SCHEMA])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((FIXTURES / f"{request.param}.sql").read_text(encoding="utf-8"))
    return f"sqlite:///{path}"


@pytest.mark.parametrize("verb", [Store.open, upgrade])
def test_a_live_lease_keeps_the_schema(old_url: str, verb: Callable[[str], object]) -> None:
    was = current(old_url)
    hold(old_url, ELSEWHERE)
    with pytest.raises(StoreInUse) as refused:
        verb(old_url)
    line = str(refused.value)
    assert f"has schema {was}, and another version of the program, pid 4711 on lab, drives study half in it" in line
    assert "end that process (kill 4711 there, its jobs go on), then try again; its lease runs until" in line
    assert "\n" not in line
    assert current(old_url) == was


def test_a_lease_that_ran_out_is_no_hindrance(old_url: str) -> None:
    hold(old_url, ELSEWHERE, for_s=-1.0)
    assert upgrade(old_url) == current(old_url) == SCHEMA


def test_a_holder_that_is_gone_is_no_hindrance(old_url: str) -> None:
    hold(old_url, ELSEWHERE)
    assert upgrade(old_url, lambda holder: holder == ELSEWHERE) == SCHEMA


def test_a_schema_that_is_up_to_date_asks_for_no_lease(sqlite_url: str) -> None:
    with closing(Store.open(sqlite_url)):
        assert upgrade(sqlite_url) == SCHEMA


@pytest.mark.parametrize("words", [["db", "upgrade"], ["status"], ["resume", "half"], ["stop", "half"]])
def test_a_verb_that_would_upgrade_is_refused_in_one_line(
    old_url: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    was = current(old_url)
    hold(old_url, this_process())
    assert main.main(["--store", old_url, *words]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("tuner: the store ")
    assert f"pid {os.getpid()} on {this_process().host}" in shown.err
    assert shown.err.count("\n") == 1
    assert current(old_url) == was


def test_a_dead_process_of_this_host_hinders_no_verb(old_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    me = this_process()
    hold(old_url, Holder(host=me.host, boot_id=me.boot_id, pid=me.pid, started="1"))
    assert main.main(["--store", old_url, "db", "upgrade"]) == 0
    assert capsys.readouterr().out.startswith(f"schema {SCHEMA} at ")


def test_a_schema_from_the_future_is_that_first(old_url: str) -> None:
    """The lease of a later version does not hide that this program is too old."""
    hold(old_url, ELSEWHERE)
    with closing(sqlite3.connect(old_url.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE tuner_alembic_version SET version_num = '9999'")
        database.commit()
    with pytest.raises(StoreTooNew):
        upgrade(old_url)


def test_a_lease_on_a_server_keeps_its_schema(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = tables.studies.c
    engine = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    now = SystemClock().now()
    given = {
        "name": "half",
        "key": "k",
        "owner": "ann",
        "state": "running",
        "version": 0,
        "spec": "{}",
        "fence": 1,
        "backend": "local",
        "bundle_uri": "file:///b",
        "intent": "run",
        "intent_at": now,
        "created_at": now,
        "attrs": {},
        "warnings": [],
        "exhausted": False,
        "lease_expires_at": now + timedelta(seconds=60),
        **{f"holder_{name}": getattr(ELSEWHERE, name) for name in ("host", "boot_id", "pid", "started")},
    }
    with engine.begin() as connection:
        connection.execute(sa.insert(tables.studies).values({name: given[name] for name in given if name in columns}))
    engine.dispose()
    monkeypatch.setattr(store_schema, "SCHEMA", "9999")
    with pytest.raises(StoreInUse, match="pid 4711 on lab, drives study half"):
        upgrade(postgres_url)
