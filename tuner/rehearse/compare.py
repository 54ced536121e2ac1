"""Compare metric curves: where an interrupted training departs from the reference, and by how much.

Rules: pure. Every reported value counts, also those of repeated steps. NaN equals NaN, since a training that diverges
does so in the same way twice.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuner.rehearse.records import Curve, RunSeen


@dataclass(frozen=True, slots=True)
class Departure:
    """The first step at which a metric differs from what it should be."""

    metric: str
    step: int
    expected: float
    found: float

    @property
    def relative(self) -> float:
        return difference(self.expected, self.found)


def difference(one: float, other: float) -> float:
    """The relative difference of two values; infinite if only one of them is finite."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))


def departures(reference: Curve, curves: Iterable[Curve], tolerance: float) -> list[Departure]:
    """The first differing step of each metric that differs at a common step, in the order of steps."""
    first: dict[str, Departure] = {}
    for curve in curves:
        for step in sorted(curve.keys() & reference.keys()):
            for name in curve[step].keys() & reference[step].keys():
                found = Departure(name, step, reference[step][name], curve[step][name])
                known = first.get(name)
                if found.relative > tolerance and (known is None or step < known.step):
                    first[name] = found
    return sorted(first.values(), key=lambda departure: (departure.step, departure.metric))


def worst(reference: Curve, curves: Iterable[Curve]) -> float:
    """The largest relative difference at any step that both have."""
    return max(
        (
            difference(reference[step][name], curve[step][name])
            for curve in curves
            for step in curve.keys() & reference.keys()
            for name in curve[step].keys() & reference[step].keys()
        ),
        default=0.0,
    )


def missing_steps(reference: Curve, curves: Sequence[Curve]) -> list[int]:
    """Steps that no run reported, although later steps were reported."""
    reported = {step for curve in curves for step in curve}
    end = max(reported, default=-1)
    return sorted(step for step in reference if step not in reported and step < end)


def redone(before: RunSeen, after: RunSeen) -> int:
    """How many steps reported before an interruption were trained again after it."""
    first = after.first_step
    return 0 if first is None else sum(step >= first for step in before.points)


def went_back(before: Sequence[RunSeen], run: RunSeen) -> bool:
    """Whether a run began before the newest complete checkpoint that it found.

    False if no run has reported that step: such a script numbers its checkpoints and its reports differently.
    """
    reached = max((other.last_step for other in before if other.last_step is not None), default=None)
    if run.first_step is None or run.resume_step is None or reached is None:
        return False
    return run.first_step < run.resume_step <= reached


def resumed_from(reference: Curve, before: Sequence[RunSeen], run: RunSeen) -> int | None:
    """The step from which a run resumed: its manifest's if plausible, else the one before its first step.

    None if it did not resume. A run resumed only if its first step is beyond the trial's first one, whatever the
    checkpoint folder held.
    """
    firsts = [other.first_step for other in before if other.first_step is not None]
    if run.first_step is None or not firsts or run.first_step <= min(firsts):
        return None
    if run.resume_step is not None and not went_back(before, run):
        return run.resume_step
    return max((step for step in reference if step < run.first_step), default=run.first_step - 1)
