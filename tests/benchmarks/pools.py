"""What pools are worth on recorded spot traces: python -m tests.benchmarks.pools TRACE [TRACE...]

Each trace is the capacity of one instance type; the first is the preferred one, and all cost the same. A sweep runs
over them in virtual time, from several moments of the traces on, under each policy: the first type alone; all types
in order, with moves; both once more with `on_demand_after: {losses: 3}`. Shown are medians over the moments.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.engine.sweeps import Sweep
from tuner.core.records import StopReason
from tuner.simulator.parts import Outage, Script, SimulatorSettings
from tuner.spec import traces

TYPES = ("ml.g5.xlarge", "ml.g4dn.xlarge", "ml.g6.xlarge")
USD_PER_HOUR = 3.06
TRIALS, PARALLEL, HOURS_EACH = 32, 8, 2
SCRIPT = Script(epochs=HOURS_EACH * 12, step_s=300.0, save_s=10.0, start_s=240.0, download_s=60.0)


@dataclass(frozen=True, slots=True)
class Found:
    usd: float
    hours: float
    lost_h: float
    interruptions: int
    moves: int
    on_demand: int


def main() -> None:
    args = arguments()
    recorded = [traces.read(path) for path in args.traces[: len(TYPES)]]
    length_s = min(trace.length_s for trace in recorded)
    starts = [length_s * k / args.starts for k in range(args.starts)]
    ideal = TRIALS * (HOURS_EACH + SCRIPT.epochs * SCRIPT.save_s / 3600) * USD_PER_HOUR
    print(f"{TRIALS} trials of {HOURS_EACH} h, {PARALLEL} at a time; on demand without any loss ${ideal:.0f}")
    for count in (1, len(recorded)):
        for losses in (None, 3):
            found = [one(recorded[:count], start, losses) for start in starts]
            tell(f"{count} type(s), on_demand_after {losses or '-'}", found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--starts", type=int, default=5)
    return parser.parse_args()


def one(recorded: list[traces.Trace], start_s: float, losses: int | None) -> Found:
    types = TYPES[: len(recorded)]
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(
            Path(folder),
            changes={
                "trials": TRIALS,
                "parallel": PARALLEL,
                "training": {"instance_types": list(types), "max_run": "6h", "max_wait": "10d"},
                "capacity": {} if losses is None else {"on_demand_after": {"losses": losses}},
                "prices": dict.fromkeys(types, USD_PER_HOUR),
                "settings": {"poll": "1m"},
            },
            script=lambda _request: SCRIPT,
            pools={kind: list(outages(trace, start_s)) for kind, trace in zip(types, recorded, strict=True)},
            settings=SimulatorSettings(saving=0.65),
        )
        sweep.run(hours=10_000)
        summary, attempts = sweep.store.summary(sweep.study.id), sweep.attempts()
        hours = (sweep.clock.now() - sweep.study.created_at).total_seconds() / 3600
        sweep.store.close()
    return Found(
        usd=summary.spend_microusd / 1e6,
        hours=hours,
        lost_h=(summary.lost_work_s or 0.0) / 3600,
        interruptions=summary.interruptions,
        moves=sum(attempt.stop_reason is StopReason.MOVE for attempt in attempts),
        on_demand=sum(not attempt.spot for attempt in attempts),
    )


def outages(trace: traces.Trace, start_s: float) -> Iterator[Outage]:
    """When nothing is up, in seconds since `start_s`; for as long as the trace lasts twice."""
    at_s = start_s
    while at_s - start_s < 2 * trace.length_s:
        change_s = trace.next_change(at_s)
        end_s = math.inf if change_s is None else change_s
        if not trace.up(at_s):
            yield at_s - start_s, end_s - start_s
        at_s = end_s


def tell(what: str, found: list[Found]) -> None:
    middle = {name: statistics.median(getattr(each, name) for each in found) for name in Found.__slots__}
    print(
        f"{what}: ${middle['usd']:.0f}, {middle['hours']:.0f} h, {middle['lost_h']:.1f} h of work lost, "
        f"{middle['interruptions']:.0f} interruptions, {middle['moves']:.0f} moves, "
        f"{middle['on_demand']:.0f} jobs on demand",
        flush=True,
    )


if __name__ == "__main__":
    main()
