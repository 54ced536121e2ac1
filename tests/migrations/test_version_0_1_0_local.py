"""A user of version 0.1.0 whose machine died in the middle of a local sweep goes on with this version."""

import json
import os
import re
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.endtoend.conftest import Desk

pytestmark = pytest.mark.slow

FIXTURE = Path(__file__).parent / "fixtures" / "version_0_1_0" / "local.json"
HOME = "/home/ann/sweeps"
SECONDS = re.compile(r"\b1796\d{6}\.\d+")  # since 1970, on the day that the folder was made
MOMENT = re.compile(r"\b2026-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")  # in the store


@pytest.fixture
def desk(tmp_path: Path):
    """The folder as it was left, on this machine, a moment ago."""
    kept = json.loads(FIXTURE.read_text(encoding="utf-8").replace(HOME, str(tmp_path)))
    ago_s = time.time() - max(file["written_at"] for file in kept.values())
    for name, file in kept.items():
        path, text = tmp_path / name, later(file["text"], ago_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:
                database.executescript(text)
        else:
            path.write_text(text, encoding="utf-8")
            os.utime(path, (file["written_at"] + ago_s,) * 2)
    desk = Desk(tmp_path)
    yield desk
    desk.kill_everything()


def later(text: str, by_s: float) -> str:
    """With each moment in it so much later; else `max_wait` and deadlines would have passed meanwhile."""
    text = SECONDS.sub(lambda found: repr(float(found[0]) + by_s), text)
    return MOMENT.sub(
        lambda found: (datetime.fromisoformat(found[0]) + timedelta(seconds=by_s)).isoformat(" ", "microseconds"), text
    )


@pytest.mark.slow
def test_its_jobs_go_on_from_their_checkpoints_with_the_code_that_they_began_with(desk: Desk) -> None:
    began_with = {row["bundle_uri"] for row in trials_of(desk)}
    assert desk.json("status", "small")["trials"]["running"] == 2
    desk.allow(4)
    done = desk.run("resume", "small")
    assert done.returncode == 0, done.stderr
    rows = desk.json("trials", "small")
    assert [row["state"] for row in rows] == ["succeeded"] * 3
    assert [row["runs"][-1]["resumed_from_step"] for row in rows] == [2, 2, None]
    assert {row["bundle_uri"] for row in trials_of(desk)} == began_with
    for words in (("audit", "small"), ("status", "small", "--check")):
        checked = desk.run(*words)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def trials_of(desk: Desk) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(desk.database)) as database:
        database.row_factory = sqlite3.Row
        return database.execute("SELECT * FROM tuner_trials").fetchall()
