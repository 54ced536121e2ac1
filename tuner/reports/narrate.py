"""What an onlooker sees of a running study: events told as sentences, and the state after each tick.

Rules: reads only. Interruptions of one commit are told together, since capacity leaves as a whole pool. Figures come
from the database's own sums, and only after something was written.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from tuner.core.errors import gist
from tuner.core.events import EventKind
from tuner.core.jobs import OUT_OF_MEMORY
from tuner.core.records import Event, Json, Study, Summary
from tuner.engine.live_study import LiveStudy, LiveTrial
from tuner.reports.records import Display, EngineView, EventLine, Level, LiveRow
from tuner.spec.records import MICROUSD, Objective
from tuner.store.store import Store, StoreUnreachable


class DisplayWatcher:
    """Feeds a display."""

    def __init__(self, display: Display, store: Store) -> None:
        self._display = display
        self._store = store
        self._summary: Summary | None = None
        self._best: tuple[int, float] | None = None

    def committed(self, events: tuple[Event, ...]) -> None:
        """Tell what happened; the figures are read again at the end of the tick."""
        self._summary = None
        for line in narrate(events):
            self._display.event(line)

    def ticked(self, study: Study, live: LiveStudy) -> None:
        """Show the study as it is now; while the store cannot say, nothing: the engine waits for it by itself."""
        if self._summary is None:
            try:
                self._best = self._find_best(study, live.spec.objectives)
                self._summary = self._store.summary(study.id)
            except StoreUnreachable:
                return
        self._display.tick(_view(study, live, self._summary, self._best))

    def store_away(self, at: datetime, error: StoreUnreachable | None) -> None:
        """Say once that the engine waits, and once that it goes on."""
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
        live=tuple(_row(work) for work in live.trials.values() if work.attempt is not None),
    )


def _row(work: LiveTrial) -> LiveRow:
    attempt = work.attempts[-1]
    return LiveRow(
        trial=work.trial.number,
        attempt=attempt.number,
        state=attempt.state,
        step=work.trial.last_step,
        value=work.trial.last_value,
        resumed_from=work.runs[-1].resumed_from_step if work.runs else None,
        instance=attempt.instance_type,
        interruptions=sum(each.interruptions for each in work.attempts),
    )


# --- events as sentences


def narrate(events: Sequence[Event]) -> list[EventLine]:
    """The events that a person wants to hear of, in order."""
    lines: list[EventLine] = []
    taken = sorted({event.trial for event in events if _is_interruption(event) and event.trial is not None})
    for event in events:
        if _is_interruption(event):
            if taken:
                lines.append(EventLine(at=event.recorded_at, level="warn", text=_taken(taken)))
                taken = []
            continue
        told = _TOLD.get(event.kind)
        if told is not None:
            level, sentence = told
            lines.append(EventLine(at=event.recorded_at, level=level, text=sentence(event)))
    return lines


def _is_interruption(event: Event) -> bool:
    return event.details.get("status") == "Interrupted"


def _taken(trials: Sequence[int]) -> str:
    who = f"trial {trials[0]}" if len(trials) == 1 else f"{len(trials)} trials at once ({_listed(trials)})"
    # what each had saved is known, and said, when it runs again
    return f"capacity was taken from {who}; {'its job waits' if len(trials) == 1 else 'their jobs wait'} for it"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _of(event: Event, key: str) -> Json:
    return event.details.get(key)


def _reason(event: Event) -> str:
    """`show` and `logs` have the rest."""
    reason = gist(str(_of(event, "reason") or ""))
    return f": {reason}" if reason else ""


def _resumed(event: Event) -> str:
    return (
        f"trial {event.trial} resumed from step {_of(event, 'step')} (attempt {event.attempt}, run {_of(event, 'run')})"
    )


def _restarted(event: Event) -> str:
    return (
        f"trial {event.trial} STARTED OVER FROM ZERO (attempt {event.attempt}, run {_of(event, 'run')}) although there "
        "was a checkpoint: the script does not load it, and every interruption costs all its work"
    )


def _nothing_saved(event: Event) -> str:
    lost_s = _of(event, "lost_s")
    cost = f", {lost_s:.0f} s of work lost" if isinstance(lost_s, int | float) else ""
    return (
        f"trial {event.trial} began anew (attempt {event.attempt}, run {_of(event, 'run')}): nothing that could be "
        f"resumed from was saved before{cost}"
    )


def _older(event: Event) -> str:
    return (
        f"trial {event.trial} BEGAN BEFORE ITS NEWEST CHECKPOINT (attempt {event.attempt}, run {_of(event, 'run')}): "
        f"it goes on from step {_of(event, 'step')} at best, although step {_of(event, 'newest')} lay there: the "
        "script does not load the newest, and every interruption costs the steps between"
    )


def _torn(event: Event) -> str:
    used = _of(event, "used")
    instead = "it started from the beginning" if used is None else f"step {used} is used"
    return f"trial {event.trial}: its newest checkpoint, step {_of(event, 'step')}, is not whole: {instead}"


def _reason_to_fail(event: Event) -> str:
    """What stands behind the reasons that are one word."""
    match _of(event, "reason"):
        case "no_progress":
            return ": no_progress: three whole runs led no further; save more often, and load what was saved"
        case str(reason) if reason.startswith(OUT_OF_MEMORY):
            return f"{_reason(event)}; it would be again: take an instance type with more memory, or use less of it"
        case "no_metric":
            return (
                ": no_metric: the objective never had a finite value; see training.metrics, or report() in the script"
            )
        case _:
            return _reason(event)


def _request(event: Event) -> str:
    values = _of(event, "values")
    what = " ".join(f"{key}={value}" for key, value in values.items()) if isinstance(values, dict) else ""
    return f"{_of(event, 'who')} asks: {_of(event, 'verb')} {what}".rstrip()


_TOLD: dict[str, tuple[Level, Callable[[Event], str]]] = {
    EventKind.ATTEMPT_SUBMIT: (
        "info",
        lambda e: f"trial {e.trial}: attempt {e.attempt} on {_of(e, 'instance')}{' spot' if _of(e, 'spot') else ''}",
    ),
    EventKind.RUN_RESUMED: ("good", _resumed),
    EventKind.RUN_RESTARTED_FROM_ZERO: ("error", _restarted),
    EventKind.RUN_NOTHING_SAVED: ("warn", _nothing_saved),
    EventKind.RUN_OLDER_CHECKPOINT: ("error", _older),
    EventKind.CHECKPOINT_TORN: ("warn", _torn),
    EventKind.WARNING: ("warn", lambda e: f"{_of(e, 'message')}"),
    EventKind.TRIAL_SUCCEED: ("good", lambda e: f"trial {e.trial} succeeded"),
    EventKind.TRIAL_PRUNE: ("info", lambda e: f"trial {e.trial} pruned{_reason(e)}"),
    EventKind.TRIAL_FAIL: ("error", lambda e: f"trial {e.trial} failed{_reason_to_fail(e)}"),
    EventKind.TRIAL_CANCEL: ("warn", lambda e: f"trial {e.trial} cancelled"),
    EventKind.TRIAL_BACK_OFF: ("warn", lambda e: f"trial {e.trial} waits for its next attempt{_reason(e)}"),
    EventKind.ATTEMPT_RESTART: ("warn", lambda e: f"trial {e.trial}: the service restarted its job"),
    EventKind.RETRY: ("info", lambda e: f"trial {e.trial} repeats failed trial {_of(e, 'of')}"),
    EventKind.ADOPTED: ("info", lambda e: f"trial {e.trial}: job {_of(e, 'job')} was found and adopted"),
    EventKind.FOREIGN: ("error", lambda e: f"job {_of(e, 'job')} is not ours; trial {e.trial} takes the next name"),
    EventKind.REFUSED_CAPACITY: ("warn", lambda e: f"trial {e.trial} waits for capacity: {_of(e, 'message')}"),
    EventKind.REFUSED: ("warn", lambda e: f"trial {e.trial} could not be submitted, tried again: {_of(e, 'message')}"),
    EventKind.BILLING_MISSING: (
        "warn",
        lambda e: f"trial {e.trial}: no billing figures, {_of(e, 'assumed_s')} s assumed",
    ),
    EventKind.UNFORESEEN: ("warn", lambda e: f"trial {e.trial}: unknown job status {_of(e, 'status')}, recorded"),
    EventKind.TROUBLE: ("warn", lambda e: f"{_of(e, 'message')}"),
    EventKind.RECOVERED: ("good", lambda e: f"the job service takes our calls again ({_of(e, 'what')})"),
    EventKind.DIFFERS: ("error", lambda e: f"{_of(e, 'message')}"),
    EventKind.HALTED: ("error", lambda e: f"{_of(e, 'message')}"),
    EventKind.METRIC_DIFFERS: (
        "warn",
        lambda e: (
            f"trial {e.trial}: {_of(e, 'metric')} is {_of(e, 'value')}, but SageMaker read {_of(e, 'service_value')} "
            "from the same log: see training.metrics and what report() is given; our value is used"
        ),
    ),
    EventKind.EXHAUSTED: ("info", lambda _: "the search space is exhausted: nothing is left to propose"),
    EventKind.REQUEST: ("info", _request),
    EventKind.STUDY: ("info", lambda e: f"the study is {_of(e, 'after')}"),
}
