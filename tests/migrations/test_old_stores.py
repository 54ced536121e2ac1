"""Stores that earlier programs wrote: kept as SQL text, opened by today's program, and every read of it works."""

import re
import shutil
import sqlite3
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from tuner.core.clock import VirtualClock
from tuner.core.records import Holder, RunEnd, StudyState, TrialState
from tuner.engine.engine import LEASE_S, Engine, NoListener, Services
from tuner.operations.backend import make_proposer
from tuner.reports import views
from tuner.reports.compare import compare, document
from tuner.simulator.cloud import SimulatedCloud
from tuner.store import schema as store_schema
from tuner.store.check import check
from tuner.store.store import Store, current

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parents[2]
SCOPE = "123456789012/us-east-1"
ME = Holder(host="here", boot_id="b", pid=1, started="1")


def restored(schema: str, folder: Path) -> str:
    path = folder / "old.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((FIXTURES / f"{schema}.sql").read_text(encoding="utf-8"))
    return f"sqlite:///{path}"


@pytest.fixture(params=sorted(file.stem for file in FIXTURES.glob("*.sql")))
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = restored(request.param, tmp_path)
    assert current(url) == request.param
    return url


@pytest.fixture
def old(old_url: str):
    with closing(Store.open(old_url)) as store:
        yield store


def test_every_schema_has_its_fixture() -> None:
    revisions = {file.stem.split("_")[0] for file in (ROOT / "migrations" / "versions").glob("*.py")}
    assert {file.stem for file in FIXTURES.glob("*.sql")} == revisions


def test_it_is_brought_up_to_date(old: Store, tmp_path: Path) -> None:
    """What it is then is what a new store is."""
    assert current(old.url) == store_schema.SCHEMA
    with closing(Store.open(f"sqlite:///{tmp_path}/new.db")) as new:
        assert _tables(old) == _tables(new)


def _tables(store: Store) -> dict[str, set[str]]:
    with store._engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
    # SQLite writes a column that was added later onto the line of the one before
    return {name: {line.strip().rstrip(",") for line in re.split(r"\n|, (?=\w+ [A-Z])", sql)} for name, sql in found}


def test_its_rows_say_what_they_said(old: Store) -> None:
    done, half = old.studies()
    assert (done.name, done.state, half.name, half.state) == ("done", StudyState.FINISHED, "half", StudyState.RUNNING)
    assert check(old, done.id) == check(old, half.id) == []
    summary = old.summary(done.id)
    assert (summary.trials[TrialState.SUCCEEDED], summary.trials[TrialState.PRUNED]) == (2, 1)
    assert (summary.interruptions, summary.resumed_runs, summary.restarted_from_zero) == (2, 2, 0)
    assert 0 < summary.spend_microusd < summary.on_demand_microusd
    assert [request.values for request in old.pending_requests(half.id)] == [{"parallel": 3}]
    assert RunEnd.INTERRUPTED in {run.end for run in old.runs(half.id)}


def test_what_an_account_shares_is_kept(old_url: str) -> None:
    """Since schema 0002; none of it is there in an older store."""
    since = current(old_url) >= "0002"
    with closing(Store.open(old_url)) as old:
        assert [(fact.name, fact.value) for fact in old.facts(SCOPE)] == [("billed_in_mid_run", False)] * since
        assert [price.usd_per_hour for price in old.prices("us-east-1")] == [Decimal("1.408")] * since


def test_every_read_works(old: Store) -> None:
    for study in old.studies():
        now = old.events(study.id)[-1].recorded_at
        assert views.status_view(old, study, now)["study"] == study.name
        assert len(views.trials_view(old, study)) == old.trial_count(study.id) > 1
        assert old.points(study.id, name="val_accuracy")
    assert document(compare(old, old.studies()))
    assert [trial.number for trial in old.best(1, maximize=True, limit=9)] == [1, 0]
    assert [len(attempts) for _, attempts, _ in old.live(2)] == [1, 1]


def test_an_engine_takes_it_up(old: Store) -> None:
    """It reads the study file of then, and the sampler's view is rebuilt from the rows of then."""
    half = old.study("half")
    clock = VirtualClock(old.events(half.id)[-1].recorded_at)
    cloud = SimulatedCloud(clock, 1, scripts=_never, outages=[])
    lease = old.acquire(half.id, ME, now=clock.now(), period_s=LEASE_S, gone=lambda _: True)
    services = Services(
        store=old, clock=clock, jobs=cloud, progress=cloud.progress, proposer=make_proposer, listener=NoListener()
    )
    engine = Engine(half, lease, services)
    assert sorted(engine.live.trials) == [trial.number for trial, _, _ in old.live(half.id)]
    assert len(engine.live.proposer.study.trials) == 2


def _never(_request: object) -> None:
    raise AssertionError("nothing is started here")


# --- revisions to come

REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{down}"


def upgrade():
    with op.batch_alter_table("tuner_studies", recreate="{recreate}") as table:
        table.add_column(sa.Column("team", sa.Text(), nullable=False, server_default="us"))
    {then}
"""


@pytest.fixture
def program_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A later program, with one revision more."""

    def make(*, then: str = "", recreate: str = "always") -> None:
        folder = shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
        text = REVISION.format(down=store_schema.SCHEMA, then=then, recreate=recreate)
        (folder / "versions" / "9999_team.py").write_text(text)
        monkeypatch.setattr(store_schema, "MIGRATIONS", Path(folder))
        monkeypatch.setattr(store_schema, "SCHEMA", "9999")

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return make


def test_a_table_that_others_point_to_may_be_built_anew(old_url: str, program_to_come) -> None:
    """As SQLite needs for most changes; rows that point to it survive, and are held to it again afterwards."""
    with closing(Store.open(old_url)) as before:
        trials = [before.trials(study.id) for study in before.studies()]
    program_to_come()
    with closing(Store.open(old_url)) as after:
        assert [after.trials(study.id) for study in after.studies()] == trials
        with after._writer.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="FOREIGN KEY"):
            connection.execute(sa.text("DELETE FROM tuner_studies"))


@pytest.mark.parametrize("then", ["raise ValueError('torn')", "op.execute('DELETE FROM tuner_trials')"])
def test_a_revision_that_goes_wrong_changes_nothing(old_url: str, program_to_come, then: str) -> None:
    """It breaks off, or leaves rows without what they belong to."""
    with closing(Store.open(old_url)) as before:
        was = [before.trials(study.id) for study in before.studies()]
    schema = current(old_url)
    program_to_come(then=then)
    with pytest.raises((ValueError, AssertionError), match=r"torn|without what they belong to"):
        Store.open(old_url)
    assert current(old_url) == schema
    with closing(sqlite3.connect(old_url.removeprefix("sqlite:///"))) as database:
        assert database.execute("SELECT count(*) FROM tuner_trials").fetchone() == (sum(map(len, was)),)


def test_a_server_is_upgraded_in_one_transaction(postgres_url: str, program_to_come) -> None:
    was = store_schema.SCHEMA
    program_to_come(recreate="never", then="raise ValueError('torn')")
    with pytest.raises(ValueError, match="torn"):
        Store.open(postgres_url)
    assert current(postgres_url) == was
