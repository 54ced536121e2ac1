"""The command line on PostgreSQL, with real processes: a sweep, two engines for one study, a server that is away."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tuner.core.records import StudyState
from tuner.store.store import Store

SCRIPT = """
import argparse, json
from tuner.training import Checkpoints, report
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr
report(1, loss=lr)
with Checkpoints().save(1) as folder:
    (folder / "state.json").write_text(json.dumps(lr))
"""
STUDY = """
name: {name}
objective: {{metric: loss, direction: minimize}}
space: {{lr: {{type: float, low: 0.01, high: 0.5}}}}
search: {{sampler: {{name: RandomSampler, seed: 3}}}}
trials: 2
parallel: 2
training: {{entry_point: train.py, max_run: 5m, max_wait: 10m}}
"""
# The longest name there may be: a server, unlike SQLite, keeps to the lengths of its columns.
NAME = "a" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "study.yaml").write_text(STUDY.format(name=NAME))
    return tmp_path


def tuner(folder: Path, url: str, *words: str) -> "subprocess.Popen[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNER_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tuner", *words],
        cwd=folder,
        env={**kept, "TUNER_STORE": url, "NO_COLOR": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    with closing(Store.open(postgres_url)) as opened:
        yield opened


@pytest.mark.slow
def test_a_sweep_and_then_two_engines_at_once(folder: Path, store: Store) -> None:
    code, out, err = ended(tuner(folder, store.url, "launch", "study.yaml"))
    assert (code, "is finished" in out) == (0, True), err
    code, out, err = ended(tuner(folder, store.url, "status", NAME, "--check", "--json"))
    assert (code, json.loads(out)["trials"]["succeeded"]) == (0, 2), err
    assert ended(tuner(folder, store.url, "audit", NAME))[0] == 0

    # far more than are run until it is cancelled, however long the loser takes to come to its refusal
    assert ended(tuner(folder, store.url, "set", NAME, "trials=6000"))[0] == 0
    racers = [tuner(folder, store.url, "resume", NAME) for _ in range(2)]
    try:
        loser = _first_to_end(racers)
        [winner] = [racer for racer in racers if racer is not loser]
        code, out, err = ended(loser)
        assert (code, out) == (3, ""), err
        assert f"is driven by pid {winner.pid} on {os.uname().nodename}" in err.splitlines()[-1]
        assert winner.poll() is None
        assert ended(tuner(folder, store.url, "cancel", NAME))[0] == 0
        assert ended(winner)[0] == 0
    finally:
        for racer in racers:
            racer.kill()
    assert store.study(NAME).state is StudyState.CANCELLED
    assert ended(tuner(folder, store.url, "audit", NAME))[0] == 0


def _first_to_end(racers: "list[subprocess.Popen[str]]") -> "subprocess.Popen[str]":
    ends = [os.pidfd_open(racer.pid) for racer in racers]
    try:
        readable, _, _ = select.select(ends, [], [], 240)
        return racers[ends.index(readable[0])]
    finally:
        for end in ends:
            os.close(end)


def test_a_server_that_is_away_is_one_line(folder: Path) -> None:
    code, out, err = ended(tuner(folder, "postgresql://ann:secret@127.0.0.1:1/tuner", "launch", "study.yaml"))
    assert (code, out) == (4, "")
    line = err.splitlines()[-1]
    assert line.startswith("tuner: the store postgresql://ann:***@127.0.0.1:1/tuner cannot be used: ")
    assert "Connection refused" in line
    assert "Traceback" not in err
    assert "secret" not in err
