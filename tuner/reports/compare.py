"""Cost against quality: what trials cost, what they were worth, and when further money stopped helping.

It gives three answers, for one study or several with the same objective. The *frontier* holds the trials that no other
trial beats at the same or a lower cost. The *incumbent over spend* is the best value so far against the dollars spent
so far; failed and pruned trials count, since they were paid for. The last answer is the dollars spent until a value
within one percent of the best was reached.

Rules: only final figures count; a running trial appears in the table only. Everything is pure except `figure`, the only
place that loads matplotlib (extra `plot`).
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from tuner.core.errors import Exit, UserError
from tuner.core.records import Json, ParamValue, Study, TrialState
from tuner.reports.views import TrialRecord, View, finite, iso, simulated, total, trial_records, usd
from tuner.spec.study_file import Objective, spec_of

if TYPE_CHECKING:
    from tuner.store.store import Store

# In a figure, a value counts as far worse if it lies this many interquartile ranges away, given this many values.
_FAR = 3.0
_MANY = 8

# Within this share of the best value's size, a value is as good as the best.
_NEAR = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost and value of a trial. Amounts are final figures, and None before there are any."""

    study: str
    number: int
    state: TrialState
    value: float | None
    spend_usd: float | None
    on_demand_usd: float | None
    step: int | None
    interruptions: int
    finished_at: datetime | None
    params: dict[str, ParamValue]

    @property
    def comparable(self) -> bool:
        return self.state is TrialState.SUCCEEDED and self.value is not None and self.spend_usd is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """The best value of a study once `trial` had ended and `spend_usd` were spent in total."""

    study: str
    trial: int
    at: datetime
    spend_usd: float
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCost:
    """One line of the comparison. `usd_to_target` is None if the target was never reached."""

    study: str
    trials: int  # ended ones
    best: float | None
    best_trial: int | None
    spend_usd: float
    on_demand_usd: float
    usd_to_target: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    objective: Objective
    simulated: bool
    target: float | None  # within one percent of the best of all studies
    studies: tuple[StudyCost, ...]
    costs: tuple[Cost, ...]
    frontier: tuple[Cost, ...]  # by cost
    incumbents: tuple[Incumbent, ...]  # by study, then time


def compare(store: "Store", studies: Sequence[Study]) -> Comparison:
    """Read the studies and compare them. Raises UserError unless each has one objective, the same in all."""
    objective = _common_objective(studies)
    up = objective.direction == "maximize"
    costs = tuple(_cost(study, record) for study in studies for record in trial_records(store, study.id))
    incumbents = {study.name: incumbent((c for c in costs if c.study == study.name), up=up) for study in studies}
    target = _target([c.value for c in costs if c.comparable and c.value is not None], up=up)
    return Comparison(
        objective=objective,
        simulated=all(simulated(study) for study in studies),
        target=target,
        studies=tuple(_study_cost(study.name, costs, incumbents[study.name], target, up=up) for study in studies),
        costs=costs,
        frontier=frontier(costs, up=up),
        incumbents=tuple(point for points in incumbents.values() for point in points),
    )


def frontier(costs: Iterable[Cost], *, up: bool) -> tuple[Cost, ...]:
    """The trials that no other beats at the same or a lower cost, cheapest first. With `up`, larger is better."""
    best: list[Cost] = []
    for cost in sorted((c for c in costs if c.comparable), key=lambda c: (c.spend_usd, _loss(c.value, up=up))):
        if not best or _loss(cost.value, up=up) < _loss(best[-1].value, up=up):
            best.append(cost)
    return tuple(best)


def incumbent(costs: Iterable[Cost], *, up: bool) -> tuple[Incumbent, ...]:
    """The best value so far against the dollars so far: one point per ended trial, in the order of their ends."""
    ended = [(cost.finished_at, cost) for cost in costs if cost.finished_at is not None]
    points: list[Incumbent] = []
    spent, best = 0.0, None
    for at, cost in sorted(ended, key=lambda pair: (pair[0], pair[1].number)):
        spent += cost.spend_usd or 0.0
        if cost.comparable and (best is None or _loss(cost.value, up=up) < _loss(best, up=up)):
            best = cost.value
        points.append(Incumbent(study=cost.study, trial=cost.number, at=at, spend_usd=round(spent, 6), value=best))
    return tuple(points)


def document(comparison: Comparison) -> View:
    """The comparison as one JSON document."""
    on_frontier = _keys(comparison.frontier)
    return {
        "metric": comparison.objective.metric,
        "direction": comparison.objective.direction,
        "simulated": comparison.simulated,
        "target": finite(comparison.target),
        "studies": [_study_entry(study) for study in comparison.studies],
        "trials": [_entry(c) | {"frontier": (c.study, c.number) in on_frontier} for c in comparison.costs],
        "frontier": [_point(c) for c in comparison.frontier],
        "incumbent": [_incumbent_entry(point) for point in comparison.incumbents],
    }


def to_csv(comparison: Comparison) -> str:
    """One line per trial, parameters last; unknown values are empty."""
    names = sorted({name for cost in comparison.costs for name in cost.params})
    on_frontier = _keys(comparison.frontier)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed = ["study", "number", "state", "value", "spend_usd", "on_demand_usd", "step", "interruptions", "finished_at"]
    writer.writerow([*fixed, "frontier", *(f"params.{name}" for name in names)])
    for cost in comparison.costs:
        entry = _entry(cost)
        mark = str((cost.study, cost.number) in on_frontier).lower()
        writer.writerow([*(entry[key] for key in fixed), mark, *(cost.params.get(name) for name in names)])
    return text.getvalue()


def figure(comparison: Comparison) -> Any:  # noqa: ANN401 - a matplotlib Figure, which has no types
    """Two panels: cost against quality with the frontier, and the incumbent over spend.

    Trials that ended without a value are marks on the cost axis, since they were paid for.

    Raises UserError if matplotlib is missing. It does not touch matplotlib's global state.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - the extra `plot`, only needed here
    except ImportError as error:
        raise UserError("a figure needs matplotlib: pip install 'spot-tuner[plot]'", Exit.USAGE) from error
    drawing = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    _draw_frontier(left, comparison)
    _draw_incumbents(right, comparison)
    metric = comparison.objective.metric.replace("$", r"\$")  # not a formula
    dollars = "simulated dollars" if comparison.simulated else "dollars"
    left.set(xlabel=f"cost of a trial, {dollars}", ylabel=metric)
    right.set(xlabel=f"spent in all, {dollars}", ylabel="best so far", title="Best value over spend")
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.locator_params(axis="x", nbins=6)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize="small")
    return drawing


def write_png(comparison: Comparison, path: Path) -> None:
    """Write the figure. Raises UserError if there is nothing to draw or the file cannot be written."""
    if not comparison.frontier:
        raise UserError("compare: nothing to draw, no trial has succeeded yet", Exit.USAGE)
    drawing = figure(comparison)
    try:
        drawing.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}", Exit.USAGE) from error


def _common_objective(studies: Sequence[Study]) -> Objective:
    goals = {study.name: spec_of(study).objectives for study in studies}
    for name, own in goals.items():
        if len(own) > 1:
            raise UserError(f"study {name} has {len(own)} objectives: compare needs studies with one", Exit.USAGE)
    if len({own[0] for own in goals.values()}) > 1:
        listed = ", ".join(f"{name}: {own[0].direction} {own[0].metric}" for name, own in goals.items())
        raise UserError(f"these studies have no common objective ({listed}): compare those that have", Exit.USAGE)
    return goals[studies[0].name][0]


def _cost(study: Study, record: TrialRecord) -> Cost:
    trial, attempts = record.trial, record.attempts
    final = trial.state.terminal and not any(attempt.live for attempt in attempts)
    return Cost(
        study=study.name,
        number=trial.number,
        state=trial.state,
        value=finite(trial.values[0]) if trial.values else None,
        spend_usd=usd(total(a.spend_microusd for a in attempts)) if final else None,
        on_demand_usd=usd(total(a.on_demand_microusd for a in attempts)) if final else None,
        step=trial.last_step,
        interruptions=sum(attempt.interruptions for attempt in attempts),
        finished_at=trial.finished_at if final else None,
        params=dict(trial.params),
    )


def _study_cost(
    name: str, costs: Iterable[Cost], points: Sequence[Incumbent], target: float | None, *, up: bool
) -> StudyCost:
    own = [cost for cost in costs if cost.study == name]
    best = min((c for c in own if c.comparable), key=lambda c: (_loss(c.value, up=up), c.number), default=None)
    reached = (p for p in points if target is not None and p.value is not None and _reached(p.value, target, up=up))
    return StudyCost(
        study=name,
        trials=len(points),
        best=best.value if best else None,
        best_trial=best.number if best else None,
        spend_usd=round(sum(cost.spend_usd or 0.0 for cost in own), 6),
        on_demand_usd=round(sum(cost.on_demand_usd or 0.0 for cost in own), 6),
        usd_to_target=next((point.spend_usd for point in reached), None),
    )


def _target(values: Sequence[float], *, up: bool) -> float | None:
    if not values:
        return None
    best = max(values) if up else min(values)
    return best - _NEAR * abs(best) if up else best + _NEAR * abs(best)


def _reached(value: float, target: float, *, up: bool) -> bool:
    return value >= target if up else value <= target


def _loss(value: float | None, *, up: bool) -> float:
    assert value is not None, "only comparable trials are ranked"
    return -value if up else value


def _keys(costs: Iterable[Cost]) -> set[tuple[str, int]]:
    return {(cost.study, cost.number) for cost in costs}


def _point(cost: Cost) -> View:
    return {"study": cost.study, "number": cost.number, "value": cost.value, "spend_usd": cost.spend_usd}


def _entry(cost: Cost) -> View:
    params: dict[str, Json] = dict(cost.params)
    return _point(cost) | {
        "state": cost.state.value,
        "on_demand_usd": cost.on_demand_usd,
        "step": cost.step,
        "interruptions": cost.interruptions,
        "finished_at": iso(cost.finished_at),
        "params": params,
    }


def _study_entry(study: StudyCost) -> View:
    return {
        "study": study.study,
        "trials": study.trials,
        "best": study.best,
        "best_trial": study.best_trial,
        "spend_usd": study.spend_usd,
        "on_demand_usd": study.on_demand_usd,
        "usd_to_target": study.usd_to_target,
    }


def _incumbent_entry(point: Incumbent) -> View:
    return {
        "study": point.study,
        "number": point.trial,
        "at": iso(point.at),
        "spend_usd": point.spend_usd,
        "value": point.value,
    }


def _draw_frontier(panel: Any, comparison: Comparison) -> None:  # noqa: ANN401 - matplotlib has no types
    panel.set_title("Cost against quality")
    for study in comparison.studies:
        shown = [c for c in comparison.costs if c.study == study.study and c.comparable]
        panel.scatter([c.spend_usd for c in shown], [c.value for c in shown], s=22, alpha=0.7, label=study.study)
    best = comparison.frontier
    panel.plot([c.spend_usd for c in best], [c.value for c in best], color="black", lw=1.2, marker="o", ms=4,
               drawstyle="steps-post", label="frontier")  # fmt: skip
    for cost in best:
        name = str(cost.number) if len(comparison.studies) == 1 else f"{cost.study} {cost.number}"
        panel.annotate(name, (cost.spend_usd, cost.value), (5, 4), textcoords="offset points", fontsize=8)
    rest = [c.spend_usd for c in comparison.costs if not c.comparable and c.spend_usd is not None]
    if rest:
        panel.plot(rest, [0.015] * len(rest), transform=panel.get_xaxis_transform(), color="grey", ls="none",
                   marker="|", ms=8, label="pruned, failed or cancelled")  # fmt: skip
    _leave_out_the_worst(panel, comparison)


def _leave_out_the_worst(panel: Any, comparison: Comparison) -> None:  # noqa: ANN401 - matplotlib has no types
    """Leave out far worse trials, which would squeeze the others into one line, and show how many they are."""
    up = comparison.objective.direction == "maximize"
    losses = sorted(_loss(c.value, up=up) for c in comparison.costs if c.comparable)
    if len(losses) < _MANY:
        return
    first, _, third = quantiles(losses, n=4)
    edge = third + _FAR * (third - first)
    near = [loss for loss in losses if loss <= edge]
    if edge == third or len(near) == len(losses):  # all values are equal, or none is far away
        return
    margin = 0.08 * (near[-1] - near[0])
    best, worst = near[0] - margin, near[-1] + margin
    panel.set_ylim(*((-worst, -best) if up else (best, worst)))
    panel.set_title(f"Cost against quality ({len(losses) - len(near)} far worse not shown)")


def _draw_incumbents(panel: Any, comparison: Comparison) -> None:  # noqa: ANN401 - matplotlib has no types
    for study in comparison.studies:
        points = [p for p in comparison.incumbents if p.study == study.study and p.value is not None]
        panel.step([p.spend_usd for p in points], [p.value for p in points], where="post", label=study.study)
    if comparison.target is not None:
        panel.axhline(comparison.target, color="grey", lw=0.8, ls="--", label="within 1 % of the best")
