"""A small real sweep, ways to destroy its engine, supervisors and checkpoints, and the check of what is left."""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from below import contents

from tests.endtoend.conftest import Desk
from tuner.core.prices import RateCard, cost_microusd
from tuner.local.billing import bill
from tuner.store.store import Store

EPOCHS = 8
ENGINES_SHARE, POOL_SHARE, TORN_SHARE = 0.4, 0.1, 0.3
TORN = {"torn_upload": True, "sync_interval_s": 0.2, "grace_s": 5.0, "saving_low": 0.3, "saving_high": 0.9}


@dataclass
class ChaosDesk(Desk):
    store: str = "sqlite:///tuner.db"
    trials: int = 0
    engine: subprocess.Popen | None = None
    heard: str = ""  # what the engine has said to `hears`
    hit: dict[str, int] = field(default_factory=dict)  # by trial: how far it had come
    torn: set[str] = field(default_factory=set)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "TUNER_STORE": self.store}

    @property
    def database(self) -> Path:
        return self.folder / self.store.removeprefix("sqlite:///")

    def write_sweep(self, *, trials: int, parallel: int = 4, step_s: float = 0.25, **local) -> None:
        self.trials = trials
        self.state_dir.mkdir()
        (self.state_dir / "settings.json").write_text(json.dumps(TORN | local))
        self.write_study(
            trials=trials,
            parallel=parallel,
            training={"hyperparameters": {"epochs": EPOCHS, "step-s": step_s, "gate": self.allow(EPOCHS)}},
        )

    def start_engine(self) -> None:
        """As a supervisor of processes would: launch, or resume what was launched."""
        verb = ("resume", "small") if self.has_study() else ("launch", "study.yaml")
        self.engine, self.heard = self.start(*verb), ""

    def end_engine(self, timeout_s: float = 270.0) -> None:
        assert self.engine is not None
        _, err = self.engine.communicate(timeout=timeout_s)
        assert self.engine.returncode == 0, err

    def hears(self, text: str) -> bool:
        """Whether this engine has printed that text; `end_engine` and readers of its errors get the rest."""
        assert self.engine is not None
        assert self.engine.stderr is not None
        os.set_blocking(self.engine.stderr.fileno(), False)
        with suppress(BlockingIOError):
            self.heard += os.read(self.engine.stderr.fileno(), 1 << 16).decode(errors="replace")
        return text in self.heard

    def more_trials(self, more: int) -> None:
        """For a sweep that was over before everything was destroyed."""
        self.end_engine()
        self.trials += more
        done = self.run("set", "small", f"trials={self.trials}")
        assert done.returncode == 0, done.stderr
        self.start_engine()

    def last_tick(self) -> datetime | None:
        with closing(Store.open(f"sqlite:///{self.database}")) as store:
            return store.study("small").last_tick_at

    def kill_everything(self) -> None:
        if self.engine is not None:
            self.engine.kill()
            self.engine.wait()
        super().kill_everything()

    @property
    def engine_ended(self) -> bool:
        return self.engine is None or self.engine.poll() is not None

    # --- what is destroyed

    def kill_engine(self, meanwhile: Callable[[], None] = lambda: None) -> bool:
        assert self.engine is not None
        if self.engine.poll() is not None:
            return False
        self.engine.kill()
        self.engine.communicate()
        meanwhile()
        self.start_engine()
        return True

    def kill_supervisor(self, chance: random.Random) -> bool:
        """Of a trial that has come further since it was hit last: three runs for nothing would be no_progress."""
        end = time.monotonic() + 20.0
        while not (victims := self.victims()) and not self.engine_ended and time.monotonic() < end:
            time.sleep(0.05)
        if not victims:
            return False
        pid, trial, step = chance.choice(victims)
        self.hit[trial] = step
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def take_pool(self) -> bool:
        """Capacity, from every job at once; as above, only when each has come further since it was hit last."""
        victims, running = self.victims(), supervisors(self.state_dir)
        if not victims or {pid for pid, _, _ in victims} != running.keys():
            return False
        self.hit |= {trial: step for _, trial, step in victims}
        self.take_capacity(down_s=0.5)
        return True

    def victims(self) -> list[tuple[int, str, int]]:
        """Supervisors that may be killed: process id, trial, its newest complete step."""
        saved = {trial_of(f"{prefix}/"): step for prefix, step in self.steps().items()}
        victims = []
        for pid, line in supervisors(self.state_dir).items():
            trial = trial_of(line)
            step = saved.get(trial, 0)
            if step > self.hit.get(trial, 0):
                victims.append((pid, trial, step))
        return victims

    def tear_newest_manifest(self, chance: random.Random) -> bool:
        """Cut a trial's newest manifest in two, as no store that keeps its promises would."""
        victims = [found for trial, found in self.manifests().items() if len(found) > 1 and trial not in self.torn]
        if not victims:
            return False
        newest = chance.choice(victims)[-1]
        self.torn.add(trial_of(str(newest)))
        with suppress(FileNotFoundError):
            os.truncate(newest, newest.stat().st_size // 2)
            return True
        return False

    def manifests(self) -> dict[str, list[Path]]:
        """By trial, as it stands in the names of jobs and prefixes; oldest step first."""
        found: dict[str, list[Path]] = {}
        there = (path for path, _ in contents(self.state_dir / "s3") if path.name == "manifest.json")
        for manifest in sorted(path for path in there if path.parent.name.startswith("step-")):
            found.setdefault(trial_of(str(manifest)), []).append(manifest)
        return found

    # --- what must be left

    def all_is_well(self) -> dict:
        """Every trial ended well, each job belongs to one attempt, and three accounts of the money agree."""
        status, rows = self.json("status", "small"), self.json("trials", "small")
        assert status["state"] == "finished"
        assert [row["number"] for row in rows] == list(range(self.trials))
        assert {row["state"] for row in rows} == {"succeeded"}, [(row["state"], row["reason"]) for row in rows]
        for row in rows:
            assert (row["step"], row["value"]) == (EPOCHS, loss_of(row["params"]["lr"]))
        assert status["restarted_from_zero"] == 0
        self.jobs_and_money_agree(status, rows)
        for words in (("audit", "small"), ("status", "small", "--check")):
            done = self.run(*words)
            assert done.returncode == 0, done.stdout + done.stderr
        # a supervisor tidies up after it has entered the end
        self.wait_until(lambda: not self.processes(), "a finished sweep leaves no process behind")
        return status

    def jobs_and_money_agree(self, status: dict, rows: list[dict]) -> None:
        recorded = [job["name"] for row in rows for job in row["jobs"]]
        assert sorted(recorded) == sorted(job["name"] for job in self.json("local", "jobs"))
        assert len(recorded) == len(set(recorded))
        rate = RateCard({}).rate("ml.m5.xlarge", "us-east-1").microusd_per_hour
        bills = {name: bill(self.state_dir, name) for name in recorded}
        for job in (job for row in rows for job in row["jobs"]):
            assert job["billable_s"] == bills[job["name"]].billable_s
        billed = sum(cost_microusd(each.billable_s or 0, each.instance_count, rate) for each in bills.values())
        assert round(status["spend_usd"] * 1_000_000) == billed

    def processes(self) -> list[str]:
        """Command lines of what still runs for this desk."""
        return [line for pid in pids() if str(self.folder) in (line := command_line(pid))]


def loss_of(lr: float) -> float:
    loss = 1.0
    for _ in range(EPOCHS):
        loss *= 1 - lr
    return loss


def trial_of(text: str) -> str:
    """The number of a trial in a job's name or a prefix, which are the end of the text: others name its beginning."""
    found = re.findall(r"(?<=[/-])[0-9]{5}(?=[/-])", text)
    assert found, text
    return found[-1]


def supervisors(state_dir: Path) -> dict[int, str]:
    """Their command lines by process id."""
    lines = {pid: command_line(pid) for pid in pids()}
    return {pid: line for pid, line in lines.items() if f"supervisor.py {state_dir}/jobs/" in line}


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def destroy(desk: ChaosDesk, kills: int, chance: random.Random) -> dict[str, int]:
    """Kill `kills` processes, engines as well as supervisors, and tear a checkpoint now and then."""
    counts = {"engine": 0, "supervisor": 0, "pool": 0, "torn": 0}
    while counts["engine"] + counts["supervisor"] < kills:
        if desk.engine_ended:
            desk.more_trials(4)
        time.sleep(chance.uniform(0.1, 1.2))
        if chance.random() < ENGINES_SHARE:
            counts["engine"] += desk.kill_engine()
        else:
            counts["supervisor"] += desk.kill_supervisor(chance)
        if chance.random() < POOL_SHARE:
            counts["pool"] += desk.take_pool()
        if chance.random() < TORN_SHARE:
            counts["torn"] += desk.tear_newest_manifest(chance)
    return counts
