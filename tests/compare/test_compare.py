"""Cost against quality, on figures that can be checked by eye."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import factories
from tuner.core.errors import UserError
from tuner.core.records import Study, TrialState
from tuner.reports.compare import Comparison, Cost, compare, document, figure, frontier, incumbent, to_csv, write_png
from tuner.spec.study_file import Objective, load, to_json
from tuner.store.store import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def cost(number: int, spend: float | None, value: float | None, state: TrialState = TrialState.SUCCEEDED) -> Cost:
    return Cost(
        study="s",
        number=number,
        state=state,
        value=value,
        spend_usd=spend,
        on_demand_usd=None,
        step=None,
        interruptions=0,
        finished_at=NOW + timedelta(seconds=number) if state.terminal else None,
        params={"lr": 0.1, "why": 'a,"b"\n'},
    )


TRIALS = [
    cost(0, 1.0, 0.80),
    cost(1, 2.0, 0.70),  # more expensive and worse
    cost(2, 3.0, 0.95),
    cost(3, 0.5, None, TrialState.FAILED),
    cost(4, 3.0, 0.94),  # equally expensive and worse
    cost(5, 5.0, 0.955),
    cost(6, None, None, TrialState.RUNNING),
]


def numbers(costs: tuple[Cost, ...]) -> list[int]:
    return [each.number for each in costs]


def comparison(costs: list[Cost]) -> Comparison:
    return Comparison(
        objective=Objective("acc_$x$", "maximize"),
        simulated=True,
        target=0.94,
        studies=(),
        costs=tuple(costs),
        frontier=frontier(costs, up=True),
        incumbents=incumbent(costs, up=True),
    )


def test_the_frontier_is_the_cheapest_for_each_quality() -> None:
    assert numbers(frontier(TRIALS, up=True)) == [0, 2, 5]
    assert numbers(frontier(TRIALS, up=False)) == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_the_frontier_by_its_definition(pairs: list[tuple[int, int]]) -> None:
    costs = [cost(number, float(spend), float(value)) for number, (spend, value) in enumerate(pairs)]
    kept = {(each.spend_usd, each.value) for each in frontier(costs, up=True)}
    beaten = {
        (float(s), float(v)) for s, v in pairs if any(s2 <= s and v2 >= v and (s2, v2) != (s, v) for s2, v2 in pairs)
    }
    assert kept == {(float(s), float(v)) for s, v in pairs} - beaten


def test_the_incumbent_pays_for_failures_too() -> None:
    points = incumbent(TRIALS, up=True)
    assert [(point.trial, point.spend_usd, point.value) for point in points] == [
        (0, 1.0, 0.80),
        (1, 3.0, 0.80),
        (2, 6.0, 0.95),
        (3, 6.5, 0.95),
        (4, 9.5, 0.95),
        (5, 14.5, 0.955),
    ]


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison(TRIALS)))))
    assert [row["frontier"] for row in rows] == ["true", "false", "true", "false", "false", "true", "false"]
    assert rows[0]["params.why"] == 'a,"b"\n'
    assert (rows[6]["value"], rows[6]["spend_usd"], rows[6]["finished_at"]) == ("", "", "")


def test_a_figure_has_two_panels_and_accepts_dollar_signs(tmp_path: Path) -> None:
    drawing = figure(comparison(TRIALS))
    assert [panel.get_title() for panel in drawing.axes] == ["Cost against quality", "Best value over spend"]
    write_png(comparison(TRIALS), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_trials_without_a_value_are_marks_on_the_axis_of_cost() -> None:
    (marks,) = [line for line in figure(comparison(TRIALS)).axes[0].lines if "pruned" in line.get_label()]
    assert list(marks.get_xdata()) == [0.5]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(("bad", "title"), [([0.5], ""), ([-40.0, -400.0], " (2 far worse not shown)")])
def test_far_worse_trials_are_left_out_of_the_figure(bad: list[float], title: str, direction: str) -> None:
    up = direction == "maximize"
    values = [(value if up else -value) for value in (*(0.3 + 0.05 * i for i in range(12)), *bad)]
    costs = [cost(number, number + 1.0, value) for number, value in enumerate(values)]
    best = frontier(costs, up=up)
    panel = figure(replace(comparison(costs), objective=Objective("x", direction), frontier=best)).axes[0]
    assert panel.get_title() == "Cost against quality" + title
    low, high = panel.get_ylim()
    assert [low < value < high for value in values] == [True] * 12 + [not title] * len(bad)


def test_an_empty_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trial has succeeded"):
        write_png(comparison(TRIALS[3:4]), tmp_path / "f.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"spot-tuner\[plot\]"):
        write_png(comparison(TRIALS), tmp_path / "f.png")


# --- several studies, from a store


def study(folder: Path, name: str, objective: str) -> Study:
    (folder / "train.py").touch()
    file = folder / f"{name}.yaml"
    file.write_text(
        f"name: {name}\nobjective: {objective}\nspace: {{lr: {{type: float, low: 0, high: 1}}}}\ntrials: 2\n"
        "training: {entry_point: train.py, instance_types: [ml.g5.xlarge]}\n"
    )
    return factories.study(name, spec=to_json(load(file)), created_at=NOW)


MAX, MIN = "{metric: acc, direction: maximize}", "{metric: loss, direction: minimize}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/t.db")


def test_studies_without_trials_compare_to_nothing(store: Store, tmp_path: Path) -> None:
    made = [store.create_study(study(tmp_path, name, MAX)) for name in ("a", "b")]
    doc = document(compare(store, made))
    assert doc["studies"] == [
        {"study": name, "trials": 0, "best": None, "best_trial": None, "spend_usd": 0, "on_demand_usd": 0,
         "usd_to_target": None}
        for name in ("a", "b")
    ]  # fmt: skip
    assert (doc["target"], doc["frontier"], doc["trials"]) == (None, [], [])


@pytest.mark.parametrize(("other", "said"), [(MIN, "no common objective"), (f"[{MAX}, {MIN}]", "has 2 objectives")])
def test_studies_without_a_common_objective_are_refused(store: Store, tmp_path: Path, other: str, said: str) -> None:
    made = [store.create_study(study(tmp_path, name, goal)) for name, goal in (("a", MAX), ("b", other))]
    with pytest.raises(UserError, match=said):
        compare(store, made)
