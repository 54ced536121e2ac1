"""What a local job costs beyond its script's own time: python -m tests.benchmarks.local_job

Whole studies of a script that only sleeps, driven in this process by the production engine and the local service, one
trial at a time. Told are the engine's processor time, the time that passes beyond the script's own, the SQL
statements and the requests to the job service, each per trial. A study of one trial is taken off, so that what a
launch costs once is not counted.
"""

import argparse
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.benchmarks.measures import Measure, api_calls, measured
from tuner.cli.live import QuietDisplay
from tuner.operations import context, launch
from tuner.operations.records import Signals

SCRIPT = """
import argparse, time
parser = argparse.ArgumentParser()
parser.add_argument("--x")
parser.add_argument("--sleep", type=float)
time.sleep(parser.parse_args().sleep)
print("loss=1.0")
"""


@dataclass(frozen=True, slots=True)
class Cost:
    measure: Measure
    calls: Counter[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds of the script itself")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[context.STORE_VARIABLE] = f"sqlite:///{folder}/tuner.db"
        os.environ["TUNER_LOCAL"] = f"{folder}/local"
        sweep(Path(folder), "warm", 1, args.sleep)  # imports, botocore's models
        one = sweep(Path(folder), "one", 1, args.sleep)
        many = sweep(Path(folder), "many", args.trials, args.sleep)
    tell(one, many, args.trials - 1, args.sleep)


def sweep(folder: Path, name: str, trials: int, sleep_s: float) -> Cost:
    """Run one study to its end."""
    (folder / "train.py").write_text(SCRIPT)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(described(name, trials, sleep_s)))
    store = context.open_store(None)
    with api_calls() as calls, measured() as found:
        outcome = launch.launch(launch.plan(file), store, display=QuietDisplay(), signals=Signals())
    store.close()
    assert outcome.exit_code == 0, outcome
    return Cost(found, calls)


def described(name: str, trials: int, sleep_s: float) -> dict:
    return {
        "name": name,
        "objective": {"metric": "loss", "direction": "minimize"},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "search": {"sampler": {"name": "RandomSampler", "seed": 1}},
        "trials": trials,
        "parallel": 1,
        "training": {
            "entry_point": "train.py",
            "hyperparameters": {"sleep": sleep_s},
            "metrics": [{"name": "loss", "regex": "loss=([0-9.]+)"}],
            "instance_types": ["ml.m5.large"],
            "max_run": "5m",
            "max_wait": "10m",
        },
    }


def tell(one: Cost, many: Cost, trials: int, sleep_s: float) -> None:
    def each(of: str) -> float:
        return (getattr(many.measure, of) - getattr(one.measure, of)) / trials

    calls = {name: round((many.calls[name] - one.calls[name]) / trials, 1) for name in sorted(many.calls)}
    print(
        f"per local trial of a script of {sleep_s} s: {each('cpu_s'):.3f} s of the engine's CPU, "
        f"{each('wall_s') - sleep_s:.2f} s beyond the script, {each('statements'):.1f} SQL statements, "
        f"{each('transactions'):.1f} commits, requests {calls}"
    )


if __name__ == "__main__":
    main()
