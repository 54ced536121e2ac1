"""Feeds a display while a study runs: a line for each event worth one, and the state after each tick.

Rules: it only reads. Sentences come from the table of `events`. Figures are sums of the database, and are read again
only after something was written.
"""

from collections.abc import Sequence
from datetime import datetime

from tuner.core.records import Event, Study, Summary
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.reports.events import narrate
from tuner.reports.records import Display, EngineView, EventLine, LiveRow
from tuner.spec.records import MICROUSD, Objective
from tuner.store.store import Store, StoreUnreachable


class DisplayListener:
    """The engine's listener that shows a study on a display."""

    def __init__(self, display: Display, store: Store) -> None:
        self._display = display
        self._store = store
        self._summary: Summary | None = None
        self._best: tuple[int, float] | None = None

    def committed(self, events: tuple[Event, ...]) -> None:
        """Show what happened; the figures are read again at the end of the tick."""
        self._summary = None
        for line in narrate(events):
            self._display.event(line)

    def ticked(self, study: Study, live: LiveStudy) -> None:
        """Show the study as it is now; nothing while the store is unreachable, since the engine waits for it."""
        if self._summary is None:
            try:
                self._best = self._find_best(study, live.spec.objectives)
                self._summary = self._store.summary(study.id)
            except StoreUnreachable:
                return
        self._display.tick(_view(study, live, self._summary, self._best))

    def store_away(self, at: datetime, error: StoreUnreachable | None) -> None:
        """Show once that the engine waits for the store, and once that it goes on."""
        if error is None:
            self._display.event(EventLine(at=at, level="info", text="the store is there again"))
        else:
            text = f"{error}; jobs go on, and so does the study when the store is there again"
            self._display.event(EventLine(at=at, level="warn", text=text))

    def _find_best(self, study: Study, objectives: Sequence[Objective]) -> tuple[int, float] | None:
        if len(objectives) > 1:
            return None
        trials = self._store.best(study.id, maximize=objectives[0].direction == "maximize")
        return (trials[0].number, trials[0].values[0]) if trials and trials[0].values else None


def _view(study: Study, live: LiveStudy, summary: Summary, best: tuple[int, float] | None) -> EngineView:
    budget = live.policy.budget_microusd
    return EngineView(
        name=study.name,
        state=study.state,
        simulated=study.local_dir is not None,
        trials=summary.trials,
        total=live.policy.trials + live.retried,
        in_flight=live.in_flight,
        parallel=live.policy.parallel,
        best_value=best[1] if best else None,
        best_trial=best[0] if best else None,
        spend_usd=summary.spend_microusd / MICROUSD,
        estimated_usd=summary.estimated_microusd / MICROUSD,
        reserved_usd=summary.reserved_microusd / MICROUSD,
        budget_usd=None if budget is None else budget / MICROUSD,
        interruptions=summary.interruptions,
        resumed_runs=summary.resumed_runs,
        restarted_from_zero=summary.restarted_from_zero,
        lost_work_s=summary.lost_work_s,
        lost_work_unknown_runs=summary.lost_work_unknown_runs,
        live=tuple(_row(trial) for trial in live.trials.values() if trial.attempt is not None),
    )


def _row(trial: LiveTrial) -> LiveRow:
    attempt = trial.attempts[-1]
    return LiveRow(
        trial=trial.record.number,
        attempt=attempt.number,
        state=attempt.state,
        step=trial.record.last_step,
        value=trial.record.last_value,
        resumed_from=trial.runs[-1].resumed_from_step if trial.runs else None,
        instance=attempt.instance_type,
        interruptions=sum(each.interruptions for each in trial.attempts),
    )
