"""A working directory with a small real study, and the command line as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

SCRIPT = """
import argparse
import json
import time

from tuner.training import Checkpoints, report

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
parser.add_argument("--step-s", type=float)
args = parser.parse_args()

checkpoints = Checkpoints()
found = checkpoints.latest()
state = json.loads((found.path / "state.json").read_text()) if found else {"epoch": 0, "loss": 1.0}
for epoch in range(state["epoch"] + 1, args.epochs + 1):
    time.sleep(args.step_s)
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

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess:
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

    def wait_until(self, condition, what: str, timeout_s: float = 60.0):
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.1)
        pytest.fail(f"not within {timeout_s} s: {what}")

    def has_study(self) -> bool:
        return self.run("status", "small", "--json").returncode == 0

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
