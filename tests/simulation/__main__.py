"""A soak: `python -m tests.simulation --seeds N [--first-seed K] [--store postgres] [--menu 1]`."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing

from tests import postgres_server
from tests.simulation import coverage, faults
from tests.simulation.soak import Outcome, run
from tests.simulation.world import new_store, postgres_stores
from tuner.store.store import Store

# One seed in this number runs twice: both runs must write the same events.
TWICE_EVERY = 10


def soak(seeds: range, stores: Callable[[], Store], menu: int, flags: str) -> tuple[list[str], list[Outcome]]:
    """One line per failing seed, and how each story went."""
    lines, outcomes = [], []
    for seed in seeds:
        outcome = run(seed, stores, menu)
        outcomes.append(outcome)
        broken = outcome.broken
        if broken is None and seed % TWICE_EVERY == 0 and run(seed, stores, menu).digest != outcome.digest:
            broken = "same_seed_same_events: told twice, it went differently"
        if broken is not None:
            lines.append(f"seed {seed}: {broken} -- python -m tests.simulation --first-seed {seed} --seeds 1{flags}")
            print(lines[-1], flush=True)
    return lines, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many stories")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="where the rows are")
    parser.add_argument("--menu", type=int, choices=sorted(faults.MENUS), default=1, help="the faults to draw from")
    chosen = parser.parse_args()
    if chosen.store == "sqlite":
        return report(chosen, new_store, f" --menu {chosen.menu}")
    with closing(postgres_server.server()) as server:
        return report(chosen, postgres_stores(server), f" --menu {chosen.menu} --store postgres")


def report(chosen: argparse.Namespace, stores: Callable[[], Store], flags: str) -> int:
    began_s = time.process_time()
    lines, outcomes = soak(range(chosen.first_seed, chosen.first_seed + chosen.seeds), stores, chosen.menu, flags)
    cpu_s = time.process_time() - began_s
    missing = coverage.report(outcomes)
    ends: Counter[str] = sum((outcome.ends for outcome in outcomes), Counter())
    print(f"attempts by end: {dict(ends)}")
    print(f"{len(outcomes)} seeds, {len(lines)} failed, {len(outcomes) / cpu_s:.2f} seeds per second of one core")
    if chosen.seeds >= coverage.COMPLETE_FROM and missing:
        print(f"not covered: {', '.join(missing)}")
        return 1
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
