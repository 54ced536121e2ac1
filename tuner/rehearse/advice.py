"""How often to save: from what a save costs and how often capacity is taken.

Young and Daly: a save takes C seconds and one interruption comes in M seconds of running. Then saving every
sqrt(2 C M) seconds wastes least. Waste is the time of saves, half an interval of work per interruption, and restarts.

AWS does not publish how often SageMaker's spot capacity is taken. Each line of advice names its source: the rate that
this store has measured for the type, or an assumption. The assumption uses the Spot Advisor's class of the EC2 type
(a shipped table with its date). That class gives the share of instances taken in a month, not how long they ran. We
read its highest class, over 20 %, as one interruption in 3.4 hours of running: the median of ten recorded pools of V100
instances of that class (2022 and 2023). Lower classes are scaled down in proportion. If the rate is wrong by a factor
of four, the interval is wrong by a factor of two, which adds a few percent to the waste.

Rules: pure. Without a measurement there is no advice. The speed of other machines is assumed only where the text says
so.
"""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise

from tuner.core.prices import PriceUnknown, RateCard
from tuner.rehearse.compare import resumed_from
from tuner.rehearse.records import Advice, Evidence, Measures, RunSeen
from tuner.spec.study_file import StudySpec

_WORST_PER_HOUR = 1 / 3.4
# The middle of each class of the Spot Advisor, as a share of its highest one.
_CLASSES = {"<5": 0.1, "5-10": 0.3, "10-15": 0.5, "15-20": 0.7, ">20": 1.0}
# Shorter saves cannot be timed on a busy machine: the kernel reports their beginning after their end.
LEAST_SAVE_S = 0.01
_HOUR_S = 3600
_BURST = 4  # reports come in bursts if the mean is this many medians


def measures(seen: Evidence) -> Measures:
    """Speed and size, as the runs of a rehearsal show them."""
    run = seen.reference
    step_s = step_seconds(run)
    restarts = [
        restart
        for index, later in enumerate(seen.interrupted)
        if index and resumed_from(run.points, seen.interrupted[:index], later) is not None
        if (restart := startup_seconds(later, step_s)) is not None
    ]
    return Measures(
        steps=len(run.points),
        step_s=step_s,
        startup_s=startup_seconds(run, step_s),
        restart_s=statistics.median(restarts) if restarts else None,
        save_s=seen.saves.save_s,
        checkpoint_bytes=seen.saves.size_bytes,
        steps_per_save=steps_per_save(seen),
    )


def step_seconds(run: RunSeen) -> float | None:
    """Median time between two reports; the mean if reports come in bursts, as log lines may."""
    moments = [run.reported_at[step] for step in sorted(run.points)]
    gaps = [max(0.0, later - earlier) for earlier, later in pairwise(moments)]
    if not any(gaps):
        return None
    median, mean = statistics.median(gaps), statistics.fmean(gaps)
    return median if median >= mean / _BURST else mean


def steps_per_save(seen: Evidence) -> int | None:
    """Median number of steps from one save to the next."""
    order = {step: index for index, step in enumerate(sorted(seen.reference.points))}
    places = [order[step] for step in seen.saves.after_steps if step in order]
    gaps = [later - earlier for earlier, later in pairwise(places)]
    return max(1, round(statistics.median(gaps))) if gaps else None


def startup_seconds(run: RunSeen, step_s: float | None) -> float | None:
    """From the start of the script to the beginning of its first step, which counts as long as the others."""
    if run.first_step is None or step_s is None:
        return None
    return max(0.0, run.reported_at[run.first_step] - run.started_at - step_s)


def advise(spec: StudySpec, measured: Measures, learned: Mapping[str, float]) -> tuple[Advice, ...]:
    """Advice for each instance type of a study. `learned` are interruptions per hour of running, by type."""
    if measured.step_s is None or measured.save_s is None:
        return ()
    each = (_advise_type(spec, kind, measured, learned.get(kind)) for kind in spec.training.instance_types)
    return tuple(advice for advice in each if advice is not None)


def _advise_type(spec: StudySpec, kind: str, measured: Measures, learned: float | None) -> Advice | None:
    per_hour, basis = (learned, "learned in this store") if learned else assumed_rate(kind, spec.region)
    if per_hour is None or measured.step_s is None or measured.save_s is None:
        return None
    save_s, restart_s = max(measured.save_s, LEAST_SAVE_S), measured.restart_s or measured.startup_s or 0.0
    interval_s = max(interval_seconds(save_s, per_hour), measured.step_s)
    now_s = None if measured.steps_per_save is None else measured.steps_per_save * measured.step_s
    return Advice(
        instance_type=kind,
        per_hour=per_hour,
        basis=basis,
        interval_s=interval_s,
        interval_steps=max(1, round(interval_s / measured.step_s)),
        lost_s=interval_s / 2,
        overhead=overhead(interval_s, save_s, restart_s, per_hour),
        overhead_now=None if now_s is None else overhead(now_s, save_s, restart_s, per_hour),
        usd_per_hour=_usd_per_hour(spec, kind),
    )


def interval_seconds(save_s: float, per_hour: float) -> float:
    """Young's and Daly's first order."""
    return math.sqrt(2 * save_s * _HOUR_S / per_hour)


def overhead(interval_s: float, save_s: float, restart_s: float, per_hour: float) -> float:
    """What saving and interruptions take, as a share of training time."""
    return save_s / interval_s + per_hour / _HOUR_S * (interval_s / 2 + restart_s)


def assumed_rate(kind: str, region: str) -> tuple[float | None, str]:
    """The assumed interruptions per hour of running of a type, and their source; None for an unlisted type."""
    listed = _shipped().get((region, kind)) or _shipped().get(("us-east-1", kind))
    if listed is None:
        return None, ""
    share, as_of = listed
    return _WORST_PER_HOUR * _CLASSES[share], f"assumed: Spot Advisor class {share}% of {as_of}"


@cache
def _shipped() -> Mapping[tuple[str, str], tuple[str, str]]:
    text = (resources.files("tuner") / "interruptions.csv").read_text(encoding="utf-8")
    rows: Sequence[Mapping[str, str]] = list(csv.DictReader(text.splitlines()))
    return {(row["region"], row["instance_type"]): (row["interrupted_pct"], row["as_of"]) for row in rows}


def _usd_per_hour(spec: StudySpec, kind: str) -> float | None:
    try:
        return float(RateCard(spec.prices).rate(kind, spec.region).usd_per_hour)
    except PriceUnknown:
        return None
