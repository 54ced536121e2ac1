"""A whole orchestrator in virtual time: the production engine, store and proposer over the simulated cloud."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from tests import factories
from tests.factories import holder
from tuner.core.clock import VirtualClock
from tuner.core.jobs import JobRequest
from tuner.core.records import Study, StudyState
from tuner.engine.engine import LEASE_S, Engine, NoListener, Services
from tuner.operations.backend import make_proposer
from tuner.simulator.cloud import SimulatedCloud
from tuner.simulator.parts import Outage, Script, SimulatedFaults, SimulatorSettings
from tuner.spec.study_file import StudySpec, load, to_json
from tuner.store.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
STUDY = {
    "name": "sweep",
    "objective": {"metric": "val_accuracy", "direction": "maximize"},
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "width": {"type": "int", "low": 8, "high": 64},
    },
    "search": {"sampler": {"name": "RandomSampler", "seed": 1}},
    "trials": 4,
    "parallel": 2,
    "training": {
        "entry_point": "train.py",
        "instance_types": ["ml.g5.xlarge"],
        "max_run": "1h",
        "max_wait": "4h",
    },
    "settings": {"poll": "30s"},
}


def merged(base: dict, changes: dict) -> dict:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class Died(Exception):  # noqa: N818 - it is what happened
    """The engine's process was killed here."""


@dataclass
class Sweep:
    """A study, its cloud, its database; engines come and go."""

    folder: Path
    changes: dict = field(default_factory=dict)
    space: dict | None = None  # in place of the default one
    script: Callable[[JobRequest], Script] = lambda _request: Script(epochs=5, step_s=60.0)
    outages: list[Outage] = field(default_factory=list)
    pools: dict[str | tuple[str, str], list[Outage]] | None = None  # with outages of their own
    settings: SimulatorSettings | None = None
    faults: SimulatedFaults | None = None
    seed: int = 1
    url: str | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "train.py").write_text("")
        file = self.folder / "study.yaml"
        base = STUDY if self.space is None else {**STUDY, "space": self.space}
        file.write_text(yaml.safe_dump(merged(base, self.changes)))
        self.spec: StudySpec = load(file)
        self.clock = VirtualClock(START)
        self.cloud = SimulatedCloud(
            self.clock,
            self.seed,
            scripts=self.script,
            outages=self.outages,
            pools=self.pools,
            settings=self.settings,
            faults=self.faults,
        )
        self.store = Store.open(self.url or f"sqlite:///{self.folder / 'tuner.db'}")
        self.study = self.store.create_study(self._new_study())
        self.engines = 0
        self.crash_point: Callable[[str], None] = lambda _point: None

    def _new_study(self) -> Study:
        rng = random.Random(self.seed)
        return factories.study(
            self.spec.name,
            key=f"{self.spec.name}-{rng.getrandbits(24):06x}",
            owner="test",
            spec=to_json(self.spec),
            bundle_uri="s3://tuner-local/bundles/b/",
            created_at=START,
        )

    def engine(self) -> Engine:
        """A new engine process; the one before it is dead."""
        self.engines += 1
        lease = self.store.acquire(
            self.study.id, holder(self.engines), now=self.clock.now(), period_s=LEASE_S, gone=lambda _holder: True
        )
        services = Services(
            store=self.store,
            clock=self.clock,
            jobs=self.cloud,
            progress=self.cloud.progress,
            proposer=make_proposer,
            listener=NoListener(),
            crash_point=lambda point: self.crash_point(point),  # noqa: PLW0108 - tests exchange it later
        )
        return Engine(self.store.study_by_id(self.study.id), lease, services)

    def run(self, hours: float = 200.0) -> StudyState:
        """Drive the study to its end or rest; fails if that takes longer than `hours`."""
        deadline = self.clock.now() + timedelta(hours=hours)
        state = self.engine().run(lambda: self.clock.now() > deadline)
        assert self.clock.now() <= deadline, f"still {state} after {hours} h: {self.store.summary(self.study.id)}"
        return state

    # --- what tests look at

    def trials(self):
        return self.store.trials(self.study.id)

    def attempts(self, trial: int | None = None):
        return self.store.attempts(self.study.id, trial=trial)

    def kinds(self, trial: int | None = None) -> list[str]:
        return [event.kind for event in self.store.events(self.study.id, trial=trial)]
