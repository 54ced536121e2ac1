"""How many calls of SageMaker's API a thousand jobs in flight take: python -m tests.benchmarks.calls

Three engines of one account share one store, in virtual time; jobs take about an hour. After a while of filling, an
hour is measured: once by lists alone, once with hints of events, once with nobody counting.
"""

import argparse
import random
import statistics
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

from tests.benchmarks.measures import measured
from tests.rates.fleet import CloudHints, Fleet, overdrawn
from tuner.aws.rates import RATES
from tuner.core.calls import Call
from tuner.simulator.parts import Script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--hours", type=float, default=1.0)
    args = parser.parse_args()
    for what, options in (
        ("lists alone", {}),
        ("with hints", {"hints": lambda fleet, study: CloudHints(fleet.cloud, fleet.clock, study.key)}),
        ("uncounted", {"rates": None}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            tell(what, args, Path(folder), options)


def tell(what: str, args: argparse.Namespace, folder: Path, options: dict) -> None:
    fleet = Fleet(folder, engines=args.engines, parallel=args.in_flight // args.engines, script=script, **options)
    fleet.run(timedelta(hours=1.5))
    before, ended = fleet.meter.calls(), len(fleet.delays_s())
    with measured() as cost:
        fleet.run(timedelta(hours=args.hours))
    calls, delays = fleet.meter.calls() - before, fleet.delays_s()[ended:]
    live = sum(attempt.ended_at is None for attempt in fleet.attempts())
    minutes = 60 * args.hours
    print(f"{what}: {live} in flight, {len(delays)} trials ended; noticed after {statistics.mean(delays):.0f} s,")
    print(f"  at worst {max(delays):.0f} s; calls a minute {each(calls, minutes)}, a trial {each(calls, len(delays))};")
    allowed = {call.value: round(60 * rate.per_s) for call, rate in RATES.items()}
    over = {call.value: overdrawn(times, RATES[call]) for call, times in fleet.meter.made.items()}
    print(f"  allowed a minute {allowed}; below the bottom of a bucket {over}")
    print(f"  {cost.cpu_s / (minutes * 2 * args.engines) * 1000:.0f} ms of CPU a tick, {cost.transactions} commits")


def each(calls: Counter, of: float) -> dict[str, float]:
    return {call.value: round(calls[call] / of, 2) for call in Call}


def script(request) -> Script:
    """An hour, more or less; two epochs, so that the simulation stays quick."""
    draw = random.Random(request.name).uniform(0.5, 1.5)
    return Script(epochs=2, step_s=1800.0 * draw, start_s=120.0, upload_s=20.0)


if __name__ == "__main__":
    main()
