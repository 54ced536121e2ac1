"""A container on this machine: a folder that stands for /opt/ml, one that stands for S3, and an agent between them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tuner.storage.bundle import make_bundle
from tuner.storage.objects import DirectoryObjects

PREFIX = "s3://bucket/study/trial/"


class Container:
    """Starts runs of one script on a fresh /opt/ml each, as an instance would after an interruption."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir()
        self.objects = DirectoryObjects(folder / "s3")
        self.store = folder / "s3" / PREFIX.removeprefix("s3://")
        self.store.mkdir(parents=True)
        self.hyperparameters: dict[str, str] = {}
        self.metrics: list[tuple[str, str, str | None]] = []
        self.environment: dict[str, str] = {}
        self.launcher = "python"
        self.resources: dict[str, object] = {"current_host": "algo-1", "hosts": ["algo-1"]}
        self.starts = 0
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def root(self) -> Path:
        return self.folder / f"ml-{self.starts}"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def failure(self) -> str:
        return (self.root / "output" / "failure").read_text()

    def script(self, text: str) -> "Container":
        (self.source / "train.py").write_text(text)
        return self

    def start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        code = self.root / "input" / "data" / "code"
        for file in make_bundle(self.source, "train.py", self.launcher, self.metrics).files:
            (code / file.name).parent.mkdir(parents=True, exist_ok=True)
            (code / file.name).write_bytes(file.data)
        config = self.root / "input" / "config"
        config.mkdir()
        (config / "hyperparameters.json").write_text(json.dumps(self.hyperparameters))
        (config / "inputdataconfig.json").write_text(json.dumps({"code": {}, "train": {}}))
        (config / "resourceconfig.json").write_text(json.dumps(self.resources))
        (config / "checkpointconfig.json").write_text(json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
        shutil.copytree(self.store, self.checkpoints)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNER_", "SM_", "PYTHON"))}
        environment = {"TUNER_ML_ROOT": str(self.root), "TUNER_ATTEMPT": "1", "TUNER_LOCAL": "1"}
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with (self.root / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(code / "tuner" / "bootstrap.py")],
                env={**kept, **threads, **environment, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def run(self) -> int:
        return self.start().wait(timeout=240)

    @property
    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")

    def until(self, condition: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
        """Wait until it holds or the process has ended."""
        end = time.monotonic() + 120
        while not condition() and process.poll() is None:
            assert time.monotonic() < end, self.log
            time.sleep(0.005)

    def sync(self, rng: random.Random, most: int | None = None) -> None:
        """What the agent does in one round: whole files, any order, deletions too; at most `most` files."""
        local, remote = _files(self.checkpoints), _files(self.store)
        changes = [name for name, stamp in local.items() if remote.get(name) != stamp] + sorted(
            remote.keys() - local.keys()
        )
        rng.shuffle(changes)
        for name in changes[:most]:
            source, target = self.checkpoints / name, self.store / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / "upload"
            try:
                shutil.copy2(source, temporary)
                temporary.replace(target)
            except FileNotFoundError:
                target.unlink(missing_ok=True)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """The instance is gone, with everything that ran on it."""
        for pid in [*descendants(process.pid), process.pid]:
            kill(pid)
        process.wait()


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Names with what tells a changed file; those of files in the making left out. Files may go while we look."""
    found = {}
    for path in (Path(base) / name for base, _, names in os.walk(folder) for name in names):
        name = str(path.relative_to(folder))
        with suppress(FileNotFoundError):
            if ".sagemaker-" not in name:
                found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it goes while it is read
        return []
    return [found for child in children for found in [*descendants(child), child]]


def gone(pid: int) -> bool:
    """Whether it has ended; one that nobody has collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_gone(pids: list[int]) -> bool:
    """Wait until they have ended: who was killed dies when the kernel comes to it."""
    end = time.monotonic() + 120
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return all(map(gone, pids))


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
