"""The Python API: launch, resume and load studies, and look at them as pandas frames.

Rules: a `Study` holds a name and an address and reads the store again each time, so it may be kept in a notebook while
the study runs. Amounts are dollars, times aware and in UTC; what is not known is missing (None, NaN, NaT). pandas is
loaded when the first frame is asked for.
"""

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.cli.live import PlainDisplay, QuietDisplay
from tuner.core import records as model
from tuner.core.clock import SystemClock
from tuner.operations import backend, context
from tuner.operations.records import Signals, StudyOutcome
from tuner.operations.use_cases import UseCases
from tuner.reports import views
from tuner.reports.compare import Comparison, compare
from tuner.reports.records import Display
from tuner.reports.views import View
from tuner.spec.study_file import spec_of
from tuner.store.store import Store

if TYPE_CHECKING:
    import optuna
    import pandas as pd

_TRIAL_TIMES = ("created_at", "finished_at")
_ATTEMPT_TIMES = ("created_at", "submitted_at", "ended_at")


def launch(
    spec: str | Path,
    *,
    store: str | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
    use_cases: UseCases | None = None,
) -> "Study":
    """Run the study file to its end, or to a rest, and return the study.

    `overrides` are `dotted.key=value`, as of `tuner launch --set`. `quiet` prints no progress. Neither is the plan
    shown nor anything asked: a study on SageMaker spends money. Raises UserError.

    `use_cases`: others than the usual ones, for example on backends of your own.
    """
    cases = use_cases or UseCases()
    plan = cases.plan(Path(spec), overrides)
    return _run(
        plan.spec.name,
        store,
        lambda opened, display: cases.launch(cases.prepare(plan, opened), opened, display=display, signals=Signals()),
        quiet=quiet,
    )


def resume(name: str, *, store: str | None = None, quiet: bool = False, use_cases: UseCases | None = None) -> "Study":
    """Reconcile a study with its jobs and carry on, as `tuner resume`. Raises UserError."""
    cases = use_cases or UseCases()
    return _run(
        name,
        store,
        lambda opened, display: cases.resume(name, opened, display=display, signals=Signals()),
        quiet=quiet,
    )


def load(name: str, *, store: str | None = None) -> "Study":
    """A study of the store. Raises UserError for an unknown name or a store that cannot be used."""
    loaded = Study(name, store)
    loaded.status()  # an unknown name is said here, not at the first frame
    return loaded


class Study:
    """One sweep, read from its store at each call."""

    def __init__(self, name: str, store: str | None = None) -> None:
        self.name = name
        self._url = store

    def status(self) -> View:
        """The document of `tuner status --json`."""
        with self._opened() as (store, found):
            return views.status_view(store, found, SystemClock().now())

    def trials(self) -> "pd.DataFrame":
        """One row a trial, indexed by number; parameters are columns `params.NAME`."""
        with self._opened() as (store, found):
            rows = views.trials_view(store, found)
        flat = [
            {key: value for key, value in row.items() if key not in ("params", "runs", "jobs")}
            | {f"params.{name}": value for name, value in _mapping(row["params"]).items()}
            for row in rows
        ]
        return _frame(flat, times=_TRIAL_TIMES, index="number")

    def attempts(self) -> "pd.DataFrame":
        """One row an attempt: its job, instance, seconds, dollars and end."""
        with self._opened() as (store, found):
            records = views.trial_records(store, found.id)
        rows = [
            {"trial": record.trial.number}
            | {key: value for key, value in views.attempt_view(attempt, record.runs).items() if key != "runs"}
            for record in records
            for attempt in record.attempts
        ]
        return _frame(rows, times=_ATTEMPT_TIMES)

    def interruptions(self) -> "pd.DataFrame":
        """One row for each run that capacity was taken from: when, how far it was, where the next run took up."""
        with self._opened() as (store, found):
            records = views.trial_records(store, found.id)
        rows = [row for record in records for row in _interruptions(record.runs)]
        return _frame(rows, times=("at",), columns=_INTERRUPTION_COLUMNS)

    def spend(self) -> "pd.DataFrame":
        """The incumbent over spend: one row for each trial that ended, in order of ending."""
        points = self.comparison().incumbents
        rows = [
            {"at": point.at, "trial": point.trial, "spend_usd": point.spend_usd, "best_value": point.value}
            for point in points
        ]
        return _frame(rows, times=("at",), columns=("at", "trial", "spend_usd", "best_value"))

    def frontier(self) -> "pd.DataFrame":
        """The trials that no other beats at the same or a lower cost, cheapest first."""
        rows: list[dict[str, Any]] = [
            {
                "trial": cost.number,
                "value": cost.value,
                "spend_usd": cost.spend_usd,
                **{f"params.{name}": value for name, value in cost.params.items()},
            }
            for cost in self.comparison().frontier
        ]
        return _frame(rows, index="trial", columns=None if rows else ("trial", "value", "spend_usd"))

    def comparison(self) -> Comparison:
        """Cost against quality, for `tuner.reports.compare.figure`."""
        with self._opened() as (store, found):
            return compare(store, [found])

    @property
    def best(self) -> View | None:
        """The best trial as an entry of `tuner trials --json`; None before any succeeded."""
        with self._opened() as (store, found):
            return next(iter(views.best_view(store, found)), None)

    @property
    def optuna(self) -> "optuna.Study":
        """The study as Optuna sees it, for its plots and importances; made again at each access, and read only."""
        from tuner.search.recorded import earlier_rows, view_rows  # noqa: PLC0415 - Optuna is slow to import

        with self._opened() as (store, found):
            spec = spec_of(found)
            proposer = backend.make_proposer(spec)
            rows = view_rows(store, found, spec, every_step=True)
            proposer.rebuild(rows, found.attrs, earlier_rows(store, found))
        return proposer.study

    def __repr__(self) -> str:
        return f"<tuner.Study {self.name}: {self.status()['state']}>"

    def _repr_html_(self) -> str:
        """A small table for notebooks; everything in it is escaped."""
        status = self.status()
        note = " (simulated)" if status["simulated"] else ""
        counts, best = _mapping(status["trials"]), status["best"]
        facts = {
            "state": status["state"],
            "trials": f"{counts['succeeded']} succeeded of {counts['total']}",
            "best": f"{best['value']} (trial {best['number']})" if isinstance(best, dict) and "value" in best else best,
            "spend": f"${status['spend_usd']:.4f}{note}",
            "on demand": f"${status['on_demand_usd']:.4f}{note}",
            "interruptions": status["interruptions"],
            "runs resumed": status["resumed_runs"],
            "restarted from zero": status["restarted_from_zero"],
            "work lost": _lost(status),
        }
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
        return f"<table><caption>{html.escape(self.name)}</caption>{rows}</table>"

    @contextmanager
    def _opened(self) -> Iterator[tuple[Store, model.Study]]:
        store = context.open_store(self._url)
        try:
            yield store, context.find(self.name, store)
        finally:
            store.close()


_INTERRUPTION_COLUMNS = ("at", "trial", "attempt", "run", "last_step", "resumed_from_step", "lost_work_s")


def _interruptions(runs: Sequence[model.Run]) -> Iterator[dict[str, Any]]:
    for run, following in zip_longest(runs, runs[1:]):
        if run.end is model.RunEnd.INTERRUPTED:
            yield {
                "at": run.ended_at,
                "trial": run.trial,
                "attempt": run.attempt,
                "run": run.number,
                "last_step": run.last_step,
                "resumed_from_step": following.resumed_from_step if following else None,
                "lost_work_s": run.lost_work_s,
            }


def _frame(
    rows: Sequence[dict[str, Any]],
    *,
    times: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    index: str | None = None,
) -> "pd.DataFrame":
    import pandas as pd  # noqa: PLC0415 - half a second that only frames are worth

    frame = pd.DataFrame(rows, columns=None if columns is None else list(columns))
    for name in times:
        if name in frame:
            frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601")
    return frame.set_index(index) if index in frame else frame


def _run(name: str, url: str | None, verb: Callable[[Store, Display], StudyOutcome], *, quiet: bool) -> Study:
    store = context.open_store(url)
    display: Display = QuietDisplay() if quiet else PlainDisplay(SystemClock())
    try:
        verb(store, display)
    finally:
        display.close()
        store.close()
    return Study(name, url)


def _lost(status: View) -> str:
    known_s, more = status["lost_work_s"], "at least " if status["lost_work_unknown_runs"] else ""
    return "not known" if known_s is None else f"{more}{known_s:.1f} s"


def _mapping(value: model.Json) -> dict[str, Any]:
    assert isinstance(value, dict), "a view's own mapping"
    return dict(value)
