"""What one tick costs with many jobs in flight over many recorded trials: python -m tests.benchmarks.tick

The production engine and store drive the simulated cloud in virtual time until `--recorded` trials have ended, and
then keep `--in-flight` jobs at work. Two kinds of ticks are told apart: those in which nothing changed, and those in
which about ten jobs ended (harvested, told, as many proposed and submitted). Work must follow what changed, not what
is recorded.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from tests.benchmarks.measures import Measure, measured
from tests.engine.sweeps import START, Sweep
from tuner.core.jobs import JobRequest
from tuner.simulator.parts import Script

POLL = timedelta(seconds=30)
TICKS = 20
ENDING_TOGETHER = 10


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(
            Path(folder),
            changes={
                "trials": args.recorded + 20 * args.in_flight,
                "parallel": args.in_flight,
                "search": {"sampler": {"name": args.sampler, "seed": 1}},
                "training": {"max_run": "28d", "max_wait": "28d"},
            },
            script=lambda request: script(request, args.recorded, sweep.clock.now() - START),
        )
        engine = sweep.engine()
        with measured() as filling:
            while ended(sweep) < args.recorded:
                engine.tick()
                sweep.clock.wait(sweep.clock.now() + POLL)
        per_trial(filling, sweep, args.recorded)
        tell("nothing changed", list(quiet_ticks(sweep, engine)))
        tell(f"{ENDING_TOGETHER} ended", list(changed_ticks(sweep, engine)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recorded", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--sampler", default="RandomSampler")
    return parser.parse_args()


def script(request: JobRequest, recorded: int, now: timedelta) -> Script:
    """Two minutes for those that fill the store; the others end ten at a time, every ten minutes, days later."""
    number = int(request.name.rsplit("-", 2)[-2])
    if number < recorded:
        return Script(epochs=2, step_s=60.0)
    end = timedelta(days=20) + timedelta(minutes=10) * ((number - recorded) // ENDING_TOGETHER)
    return Script(epochs=1, step_s=(end - now).total_seconds())


def ended(sweep: Sweep) -> int:
    return sum(count for state, count in sweep.store.summary(sweep.study.id).trials.items() if state.terminal)


def one_tick(sweep: Sweep, engine) -> tuple[Measure, int]:
    """A tick, and the number of trials that ended in it."""
    before = ended(sweep)
    with measured() as found:
        engine.tick()
    return found, ended(sweep) - before


def quiet_ticks(sweep: Sweep, engine) -> Iterator[tuple[Measure, int]]:
    """Ticks at the next polls."""
    for _ in range(TICKS):
        sweep.clock.wait(sweep.clock.now() + POLL, due=sweep.clock.now())
        yield one_tick(sweep, engine)


def changed_ticks(sweep: Sweep, engine) -> Iterator[tuple[Measure, int]]:
    """Ticks in which about ten trials ended; start-up times differ, so that a group may need two."""
    found = 0
    while found < TICKS // 2:
        sweep.clock.wait(sweep.clock.now() + POLL)  # to the next event
        measure, ended_now = one_tick(sweep, engine)
        if ended_now >= ENDING_TOGETHER // 2:
            found += 1
            yield measure, ended_now


def per_trial(filling: Measure, sweep: Sweep, recorded: int) -> None:
    calls = {name: round(count / recorded, 2) for name, count in sorted(sweep.cloud.calls.items())}
    print(
        f"to record {recorded} trials: {1000 * filling.cpu_s / recorded:.1f} ms of CPU, "
        f"{filling.statements / recorded:.1f} SQL statements and {filling.transactions / recorded:.2f} commits each; "
        f"requests each: {calls}"
    )


def tell(what: str, ticks: list[tuple[Measure, int]]) -> None:
    measures = [measure for measure, _ in ticks]
    cpu = [1000 * measure.cpu_s for measure in measures]
    print(
        f"one tick, {what}: median {statistics.median(cpu):.1f} ms of CPU, worst {max(cpu):.1f} ms, "
        f"{statistics.median(measure.statements for measure in measures):.0f} SQL statements "
        f"(trials ended: {sorted({count for _, count in ticks})})"
    )


if __name__ == "__main__":
    main()
