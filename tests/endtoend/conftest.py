"""A working directory with a small real study, and the command line as a user runs it.

Nothing here goes by the clock: a script with a gate goes no further than the test allows, and capacity is taken away
when the test has seen what it waited for, so that a slow machine only takes longer.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from below import contents

from tuner._job_checkpoints import resume_point
from tuner.local.market import write_market

SCRIPT = """
import argparse
import json
import os
import time

from tuner.training import Checkpoints, report

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
parser.add_argument("--step-s", type=float)
parser.add_argument("--gate", default="")  # a file that says how many epochs are allowed
args = parser.parse_args()

checkpoints = Checkpoints()
found = checkpoints.latest()
state = json.loads((found.path / "state.json").read_text()) if found else {"epoch": 0, "loss": 1.0}
for epoch in range(state["epoch"] + 1, args.epochs + 1):
    time.sleep(args.step_s)
    while args.gate and epoch > int(open(args.gate).read() or 0):
        time.sleep(0.02)
    state = {"epoch": epoch, "loss": state["loss"] * (1 - args.lr)}
    report(epoch, loss=state["loss"])
    with checkpoints.save(epoch) as folder:
        (folder / "state.json").write_text(json.dumps(state))
"""

STUDY = {
    "name": "small",
    "objective": {"metric": "loss", "direction": "minimize"},
    "space": {"lr": {"type": "float", "low": 0.01, "high": 0.5}},
    "search": {"sampler": {"name": "RandomSampler", "seed": 3}},
    "trials": 6,
    "parallel": 3,
    "training": {
        "entry_point": "train.py",
        "hyperparameters": {"epochs": 8, "step-s": 0.25},
        "max_run": "5m",
        "max_wait": "10m",
    },
}


@dataclass
class Desk:
    """Where a user works: a directory, and commands run in it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNER_")}
        return {**kept, "NO_COLOR": "1", "PYTHONWARNINGS": "error"}

    def write_study(self, **changes) -> Path:
        study = dict(STUDY)
        for key, value in changes.items():
            both = isinstance(value, dict) and isinstance(study.get(key), dict)
            study[key] = {**study[key], **value} if both else value
        (self.folder / "train.py").write_text(SCRIPT)
        file = self.folder / "study.yaml"
        file.write_text(yaml.safe_dump(study))
        return file

    def allow(self, epochs: int) -> str:
        """Let every script with this gate train so far; the gate."""
        gate, new = self.folder / "gate", self.folder / "gate.new"
        new.write_text(str(epochs))
        new.replace(gate)
        return str(gate)

    def write_gated(self, *, allowed: int, epochs: int, **changes) -> None:
        gated = {"epochs": epochs, "step-s": 0.05, "gate": self.allow(allowed)}
        self.write_study(training={"hyperparameters": gated}, **changes)

    @property
    def state_dir(self) -> Path:
        return self.folder / ".tuner"

    def job_names(self) -> list[str]:
        return [path.name for path in self.state_dir.glob("jobs/*")]

    def run_count(self) -> int:
        return len(list(self.state_dir.glob("jobs/*/logs/*.log")))

    def steps(self) -> dict[str, int]:
        """By prefix: the newest complete checkpoint in the store, where a manifest may come before its files."""
        there = (path for path, _ in contents(self.state_dir / "s3") if path.name == "manifest.json")
        points = {prefix: resume_point(prefix) for prefix in {path.parents[1] for path in there}}
        return {str(prefix): point.step for prefix, point in points.items() if point is not None}

    def saved(self, step: int, trials: int) -> bool:
        """Whether that number of trials has reached the step."""
        return sum(newest >= step for newest in self.steps().values()) >= trials

    def take_capacity(self, down_s: float) -> None:
        """From every study here, now, for so long. Not for a study with a market: a resume would bring that back."""
        now = datetime.now(UTC).isoformat()
        for key in {name.rsplit("-", 2)[0] for name in self.job_names()}:
            write_market(self.state_dir, key, {"started_at": now, "kind": "at", "at_s": [0], "down_s": down_s})

    def start(self, *words: str) -> subprocess.Popen:
        return self.start_program([sys.executable, "-m", "tuner", *words])

    def start_program(self, command: list[str]) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess:
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"tuner {' '.join(words)} did not end in {timeout_s} s:\n{out}\n{err}")
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def json(self, *words: str):
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def wait_until(self, condition, what: str, timeout_s: float = 120.0):
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.1)
        pytest.fail(f"not within {timeout_s} s: {what}")

    @property
    def database(self) -> Path:
        return self.folder / "tuner.db"

    def has(self, table: str) -> bool:
        """Whether there is a row in that table; asks the database itself, which costs no process."""
        if not self.database.exists():
            return False
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(self.database)) as database:
            return bool(database.execute(f"SELECT 1 FROM {table}").fetchone())
        return False

    def has_study(self) -> bool:
        return self.has("tuner_studies")

    def kill_everything(self) -> None:
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(self.folder).encode() in status.read_bytes():
                    os.kill(int(status.parent.name), signal.SIGKILL)
            except (OSError, ValueError):
                continue


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    desk.kill_everything()
