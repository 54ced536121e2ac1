"""What one seed means: a study, a cloud, scripts, and which misfortune comes when.

Rules: everything is drawn from the seed, and nothing else is random. A job's script is drawn from the seed and the
job's name or prefix, never from the order of calls. Studies are small, so that a thousand of them run in minutes.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tuner.core.jobs import JobRequest
from tuner.core.prices import RateCard
from tuner.simulator.parts import (
    Curve,
    Outage,
    Script,
    SimulatedFaults,
    SimulatorSettings,
    exponential_outages,
    smooth_curve,
)

_RETRIED = "AlgorithmError: ExecuteUserScriptError: ExitCode 75"
_FATAL = "AlgorithmError: ExecuteUserScriptError: ExitCode 1"
FAILURES = (_RETRIED, _FATAL, "InternalServerError: We encountered an internal error", "CapacityError: no capacity")
_INSTANCES = ("ml.g5.xlarge", "ml.g4dn.xlarge", "ml.m5.xlarge")
_CARD = RateCard()
_GRID = {
    "lr": {"type": "categorical", "choices": [0.1, 0.01]},
    "width": {"type": "categorical", "choices": [8, 16]},
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A misfortune of the menu, `at_s` seconds after the launch; `draw` seeds what it chooses."""

    at_s: float
    kind: str
    draw: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    seed: int
    study: dict
    space: dict | None
    settings: SimulatorSettings
    background: SimulatedFaults
    outages: tuple[Outage, ...]
    drought: str | None  # how they came about
    pools: dict[str, tuple[Outage, ...]]  # instance types with outages of their own
    planned: tuple[Planned, ...]
    safety_s: float  # faults come until then
    raises_limits: bool  # what the user does about a limit, once faults are over
    cycles: bool  # each engine lives for one cycle of cron's

    @property
    def scripts(self) -> Callable[[JobRequest], Script]:
        curve = _curve(self.seed)
        return lambda request: _script(self.seed, request, curve)


def scenario(seed: int, menu: tuple[str, ...]) -> Scenario:
    """The story of `seed`."""
    rng = random.Random(f"scenario:{seed}")
    grid = rng.random() < 0.15
    safety_s = rng.choice((1800.0, 3600.0, 5400.0))
    drought, outages = _outages(rng, safety_s)
    storm = random.Random(f"storm:{seed}")
    if storm.random() < 0.1:
        drought, outages = "drought:storm", _storm(storm, safety_s)
    study = _study(rng, grid=grid)
    jumps = _jumps(random.Random(f"clock:{seed}"), study, safety_s)
    types = study["training"]["instance_types"]
    return Scenario(
        seed=seed,
        study=study,
        space=_GRID if grid else None,
        settings=SimulatorSettings(
            saving=rng.choice((0.0, 0.35, 0.65)),
            quota=rng.choice((None, None, 1, 2)),
            quotas={rng.choice(types): rng.choice((0, 1, 2))} if rng.random() < 0.25 else {},
            max_run_per_run=rng.random() < 0.25,
            starting_after_interruption=rng.random() < 0.5,
        ),
        background=_background(rng),
        outages=outages,
        drought=drought,
        pools={each: _outages(rng, safety_s)[1] for each in types} if rng.random() < 0.35 else {},
        planned=tuple(sorted((*_planned(rng, safety_s, menu), *jumps), key=lambda each: each.at_s)),
        safety_s=safety_s,
        raises_limits=rng.random() < 0.5,
        cycles=random.Random(f"cycles:{seed}").random() < 0.15,
    )


def _planned(rng: random.Random, safety_s: float, menu: tuple[str, ...]) -> tuple[Planned, ...]:
    count = rng.randint(4, 24)
    return tuple(Planned(rng.uniform(0, safety_s), rng.choice(menu), rng.getrandbits(32)) for _ in range(count))


def _jumps(rng: random.Random, study: dict, safety_s: float) -> tuple[Planned, ...]:
    """Few stories by themselves set a clock where silence counts."""
    if rng.random() >= 0.1:
        return ()
    study["training"]["stall_after"] = "6m"
    return tuple(Planned(rng.uniform(300, safety_s), "clock:forward", rng.getrandbits(32)) for _ in range(4))


def _background(rng: random.Random) -> SimulatedFaults:
    if rng.random() < 0.6:
        return SimulatedFaults()
    return SimulatedFaults(
        refused=rng.choice((0.0, 0.05, 0.2)),
        lost=rng.choice((0.0, 0.1, 0.3)),
        lagging=rng.choice((0.0, 0.3)),
        lag_s=rng.choice((30.0, 300.0)),
        repeated=rng.choice((0.0, 0.3)),
    )


def _outages(rng: random.Random, safety_s: float) -> tuple[str | None, tuple[Outage, ...]]:
    match rng.choice(("none", "long", "often", "trace")):
        case "long":
            start = rng.uniform(0, safety_s / 2)
            return "drought:long", ((start, start + rng.uniform(600, 9000)),)
        case "often":
            drawn = exponential_outages(rng.getrandbits(32), mean_s=rng.uniform(300, 1500), down_s=rng.uniform(20, 600))
            return "drought:often", tuple(_until(drawn, safety_s))
        case "trace":
            return "drought:trace", tuple(_until(_trace(rng), safety_s))
    return None, ()


def _storm(rng: random.Random, safety_s: float) -> tuple[Outage, ...]:
    """Capacity that is taken every few minutes: a script that does not save gets nowhere."""
    drawn = exponential_outages(rng.getrandbits(32), mean_s=rng.uniform(120, 240), down_s=rng.uniform(10, 40))
    return tuple(_until(drawn, safety_s))


def _trace(rng: random.Random) -> Iterator[Outage]:
    """The shape of the recorded spot traces: long calm, then a burst of short losses that ends in a long one."""
    at = 0.0
    while True:
        at += rng.uniform(200, 2000)
        for _ in range(rng.randint(1, 4)):
            down_s = rng.uniform(10, 120)
            yield at, at + down_s
            at += down_s + rng.uniform(20, 200)
        down_s = rng.uniform(300, 1800)
        yield at, at + down_s
        at += down_s


def _until(outages: Iterator[Outage], end_s: float) -> Iterator[Outage]:
    for outage in outages:
        if outage[0] >= end_s:
            return
        yield outage


# --- the study file


def _study(rng: random.Random, *, grid: bool) -> dict:
    max_run_min = rng.choice((10, 20, 40))
    count = rng.randint(1, len(_INSTANCES))
    spot = rng.random() < 0.85
    study: dict = {
        "trials": rng.randint(1, 8),
        "parallel": rng.randint(1, 4),
        "search": {"sampler": _sampler(rng, grid=grid)},
        "training": {
            "instance_types": rng.sample(_INSTANCES, count),
            "max_run": f"{max_run_min}m",
            "max_wait": f"{max_run_min + rng.choice((0, 10, 60))}m",
            "retry_on": [{"exit_code": 75}],
        },
        "capacity": {"policy": "spot" if spot else "on-demand", "max_faults": rng.randint(0, 3)},
        "settings": {"poll": rng.choice(("30s", "1m", "2m"))},
    }
    if spot and rng.random() < 0.3:
        study["capacity"]["on_demand_after"] = {"losses": rng.randint(1, 4)}
    pruner = _pruner(rng)
    if pruner is not None:
        study["search"]["pruner"] = pruner
    if rng.random() < 0.4:
        study["training"]["stall_after"] = rng.choice(("6m", "8m"))
    study["budget"], tight = _budget(rng, study["training"]["instance_types"], max_run_min)
    study["settings"] |= tight
    return study


def _budget(rng: random.Random, types: list[str], max_run_min: int) -> tuple[dict, dict]:
    """Limits of the study; and, where money is short, settings that reserve hardly more than a job can bill."""
    budget: dict = {}
    tight: dict = {}
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            tight = {"stop_within": "10s", "upload_allowance": "90s"}
        extra_min = 6 if tight else 14.5
        dearest = max(float(_CARD.rate(each, "us-east-1").usd_per_hour) for each in types)
        budget["usd"] = round(dearest * (max_run_min + extra_min) / 60 * rng.choice((1, 1.3, 2, 3, 6)), 4)
    if rng.random() < 0.3:
        budget["per_trial_usd"] = rng.choice((0.03, 0.05, 0.2))
    if rng.random() < 0.2:
        budget["deadline"] = rng.choice(("20m", "1h", "3h"))
    return budget, tight


def _sampler(rng: random.Random, *, grid: bool) -> dict:
    if grid:
        return {"name": rng.choice(("GridSampler", "BruteForceSampler"))}
    name = rng.choice(("RandomSampler", "TPESampler", "QMCSampler"))
    few = {"n_startup_trials": 2} if name == "TPESampler" else {}
    return {"name": name, "seed": rng.randint(0, 99), **few}


def _pruner(rng: random.Random) -> dict | None:
    return rng.choice(
        (
            None,
            {"name": "MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 1},
            {"name": "SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 2},
        )
    )


# --- scripts


def _script(seed: int, request: JobRequest, curve: Curve) -> Script:
    """What the jobs of a trial have in common, and what goes wrong in this one."""
    rng = random.Random(f"script:{seed}:{request.checkpoint_uri}")
    script = Script(
        epochs=rng.randint(2, 8),
        step_s=rng.choice((45.0, 90.0, 180.0)),
        curve=curve,
        metric=None if rng.random() < 0.03 else "val_accuracy",
        numbered=rng.random() < 0.93,
        checkpoint_every=rng.choice((1, 1, 1, 1, 2, 3, 0)),
        save_s=rng.choice((0.0, 0.0, 10.0, 40.0)),
        manifests=rng.random() < 0.8,
        resumes=rng.random() < 0.9,
        torn=rng.random() < 0.15,
        ignores_sigterm=rng.random() < 0.15,
        start_s=rng.choice((20.0, 60.0, 200.0)),
        download_s=rng.choice((0.0, 10.0, 60.0)),
        upload_s=rng.choice((1.0, 5.0, 90.0)),
        behind=rng.choices((0, 1, 2), (80, 5, 15))[0],
    )
    return _misfortune(script, random.Random(f"script:{seed}:{request.name}"))


def _misfortune(script: Script, rng: random.Random) -> Script:
    match rng.choices(("none", "fails", "hangs", "sync"), (76, 8, 10, 6))[0]:
        case "fails":
            step = rng.choice((None, rng.randint(1, script.epochs)))
            return replace(script, failure=rng.choice(FAILURES), fails_at=step)
        case "hangs":
            return replace(script, hangs_after=rng.randint(0, script.epochs - 1))
        case "sync":
            return replace(script, sync_stops_after=rng.randint(0, script.epochs - 1))
    return script


def _curve(seed: int) -> Curve | None:
    """Mostly one that gives the same value again; sometimes one that does not, or that gives no number."""
    rng = random.Random(f"curve:{seed}")
    kind = rng.choices(("same", "noisy", "broken"), (65, 15, 20))[0]
    if kind == "same":
        return None
    smooth, noise = smooth_curve(seed), random.Random(f"noise:{seed}")

    def value(hyperparameters, step: int) -> float:
        if kind == "broken" and noise.random() < 0.25:
            return noise.choice((float("nan"), float("inf"), -float("inf")))
        return smooth(hyperparameters, step) + noise.uniform(-0.1, 0.1)

    return value
