"""How each kind of event is reported to a person: one table, which every verb reads.

It exists so that no event is forgotten and no two verbs describe the same event differently. The live line, `tuner
show` and `tuner status` take their sentences from here, and so will every later reader of events.

Rules: each kind of event has a sentence, or a reason why it has none. Events that cost money or need a decision are
`warn` or `error`; routine steps of a job are silent, because the table of trials shows them. Details come from the
store, where any of them may be missing. An event of a kind that a newer version wrote is reported by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tuner.core.commands import Message, from_stored
from tuner.core.errors import gist
from tuner.core.events import EventKind, known_kind
from tuner.core.jobs import OUT_OF_MEMORY
from tuner.core.records import Event, Json, StopReason
from tuner.reports.records import EventLine, Level

Sentence: TypeAlias = Callable[[Event], str | Message]


@dataclass(frozen=True, slots=True)
class Reported:
    """A kind of event with its sentence. `level` is fixed, since it says what the reader should do about the kind."""

    level: Level
    sentence: Sentence
    # Events of one commit with the same answer become one line: a pool is taken away, or a study stopped, as a whole.
    grouped_by: Callable[[Event], str] | None = None
    of_group: Callable[[Event, Sequence[int]], str] | None = None


@dataclass(frozen=True, slots=True)
class NotReported:
    """A kind of event that needs no sentence."""

    because: str


def narrate(events: Sequence[Event]) -> list[EventLine]:
    """The lines that a reader should see for the events of one commit, in order."""
    groups = _groups(events)
    lines: list[EventLine] = []
    for event in events:
        entry = _entry(event)
        if isinstance(entry, NotReported):
            continue
        trials = groups.pop(_group(event, entry), None) if entry.grouped_by else [event.trial or 0]
        if trials is None:
            continue  # its group has its line already
        text = entry.sentence(event) if len(trials) == 1 or entry.of_group is None else entry.of_group(event, trials)
        lines.append(EventLine(at=event.recorded_at, level=entry.level, text=text))
    return lines


def sentence(event: Event) -> tuple[Level, str | Message] | None:
    """The level and the sentence of one event; None for a kind that is not reported."""
    entry = _entry(event)
    return None if isinstance(entry, NotReported) else (entry.level, entry.sentence(event))


def _entry(event: Event) -> Reported | NotReported:
    if event.details.get("status") == "Interrupted":
        # also where it changes no state, as for a job that is stopping
        return EVENTS[EventKind.ATTEMPT_INTERRUPT]
    kind = known_kind(event.kind)
    return _NEWER if kind is None else EVENTS[kind]


_GroupKey: TypeAlias = tuple[str, str]


def _group(event: Event, entry: Reported) -> _GroupKey:
    assert entry.grouped_by is not None, "asked of grouped kinds only"
    return entry.level, entry.grouped_by(event)


def _groups(events: Sequence[Event]) -> dict[_GroupKey, list[int]]:
    """The trials of each group of events."""
    groups: dict[_GroupKey, set[int]] = {}
    for event in events:
        entry = _entry(event)
        if isinstance(entry, Reported) and entry.grouped_by is not None and event.trial is not None:
            groups.setdefault(_group(event, entry), set()).add(event.trial)
    return {key: sorted(trials) for key, trials in groups.items()}


# --- sentences


def _of(event: Event, key: str) -> Json:
    return event.details.get(key)


def _message(event: Event) -> str:
    return str(_of(event, "message"))


def _message_and_remedy(event: Event) -> Message:
    return from_stored(event.details)


def _after_colon(text: Json) -> str:
    """A reason in one line; `tuner show` and `tuner logs` have the rest."""
    line = gist(str(text or ""))
    return f": {line}" if line else ""


def _reason(event: Event) -> str:
    return _after_colon(_of(event, "reason"))


def _run(event: Event) -> str:
    return f"(attempt {event.attempt}, run {_of(event, 'run')})"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _attempt(event: Event) -> str:
    spot = " spot" if _of(event, "spot") else ""
    return f"trial {event.trial}: attempt {event.attempt} on {_of(event, 'instance')}{spot}"


def _taken_from_many(_: Event, trials: Sequence[int]) -> str:
    return f"capacity was taken from {len(trials)} trials at once ({_listed(trials)}); their jobs wait for it"


def _resumed(event: Event) -> str:
    return f"trial {event.trial} resumed from step {_of(event, 'step')} {_run(event)}"


def _from_zero(event: Event) -> str:
    return (
        f"trial {event.trial} STARTED OVER FROM ZERO {_run(event)} although there was a checkpoint: the script does "
        "not load it, and every interruption costs all its work"
    )


def _from_older(event: Event) -> str:
    return (
        f"trial {event.trial} BEGAN BEFORE ITS NEWEST CHECKPOINT {_run(event)}: it went on from step "
        f"{_of(event, 'step')} at best, although a checkpoint of step {_of(event, 'newest')} was there; the script "
        "does not load the newest checkpoint, and every interruption costs the steps between"
    )


def _nothing_saved(event: Event) -> str:
    lost_s = _of(event, "lost_s")
    cost = f", {lost_s:.0f} s of work lost" if isinstance(lost_s, int | float) else ""
    return f"trial {event.trial} started from the beginning {_run(event)}: no usable checkpoint was saved{cost}"


def _torn(event: Event) -> str:
    used = _of(event, "used")
    instead = "the script started from the beginning" if used is None else f"step {used} is used instead"
    return f"trial {event.trial}: its newest checkpoint (step {_of(event, 'step')}) is incomplete; {instead}"


def _why_failed(event: Event) -> str:
    """The advice behind reasons that are one word."""
    match _of(event, "reason"):
        case "no_progress":
            return ": no_progress: three whole runs made no progress; save more often, and load what was saved"
        case str(reason) if reason.startswith(OUT_OF_MEMORY):
            return f"{_reason(event)}; a retry would fail too: use an instance type with more memory, or use less of it"
        case "no_metric":
            return (
                ": no_metric: the objective never had a finite value; check training.metrics, or report() in the script"
            )
        case _:
            return _reason(event)


_STOPS: Mapping[str, str] = {
    StopReason.PRUNE: "the pruner ended the trial",
    StopReason.PAUSE: "the trial reached its rung",
    StopReason.MOVE: "the trial continues on other capacity",
    StopReason.LIMIT: "a time limit is reached (budget.deadline, or max_run of the job)",
    StopReason.STALL: "nothing came from the job for training.stall_after; this counts as a fault",
    StopReason.TRIAL_BUDGET: "the trial may have cost its whole budget.per_trial_usd",
    StopReason.NO_PROGRESS: "it trained without saving anything newer",
    StopReason.USER: "the study is being stopped",
    StopReason.CANCEL: "the study is being cancelled",
}


def _why_stopped(event: Event) -> str:
    why, to = str(_of(event, "why")), _of(event, "to")
    if to is not None:
        return f"waited too long for {_of(event, 'left')}; the next attempt asks for {to}"
    return _STOPS.get(why, why)


def _stop(event: Event) -> str:
    return f"trial {event.trial}: attempt {event.attempt} is to stop: {_why_stopped(event)}"


def _stop_of_many(event: Event, trials: Sequence[int]) -> str:
    return f"{len(trials)} jobs are to stop (trials {_listed(trials)}): {_why_stopped(event)}"


def _rerouted(event: Event) -> str:
    return (
        f"trial {event.trial}: attempt {event.attempt} asks for {_of(event, 'to')} instead of {_of(event, 'left')}"
        f"{_after_colon(_of(event, 'why'))}"
    )


def _metric_differs(event: Event) -> str:
    return (
        f"trial {event.trial}: {_of(event, 'metric')} is {_of(event, 'value')}, but SageMaker read "
        f"{_of(event, 'service_value')} from the same log; our value is used. Check training.metrics, and the values "
        "given to report()"
    )


def _asked(event: Event) -> str:
    """A request as its command line says it: `set trials=9`, `stop`."""
    verb, values = str(_of(event, "verb")), _of(event, "values")
    if verb == "set" and isinstance(values, dict):
        return " ".join([verb, *(f"{key}={value}" for key, value in values.items())])
    intent = values.get("intent") if isinstance(values, dict) else None
    option = {"stop_now": " --now", "drain": " --drain"}.get(str(intent), "")
    return f"{verb}{option}"


def _request_refused(event: Event) -> str:
    return f"refused '{_asked(event)}' of {_of(event, 'who')}: {_message(event)}; nothing was changed"


def _resume(event: Event) -> str:
    what = "runs one cycle of the study" if _of(event, "once") is True else "resumes the study"
    return f"{_of(event, 'who')} {what}"


def _moved(event: Event) -> str:
    return (
        f"the state directory {_of(event, 'before')} is gone: {_of(event, 'after')} has the study's jobs, and is used"
    )


def _accepted(event: Event) -> str:
    changes = _of(event, "changes")
    listed = "; ".join(str(change) for change in changes) if isinstance(changes, list) else ""
    return f"accepted the study file and the code as they are now{f': {listed}' if listed else ''}"


def _why_waits(event: Event) -> str:
    """The reason is text, or a stored reason of a stop."""
    reason = str(_of(event, "reason") or "")
    return _after_colon(_STOPS.get(reason, reason))


def _pruned(event: Event) -> str:
    """The reason says "pruned at step 3" already."""
    reason = gist(str(_of(event, "reason") or ""))
    return (
        f"trial {event.trial} {reason}"
        if reason.startswith("pruned")
        else f"trial {event.trial} pruned{_reason(event)}"
    )


def _about_trial(text: str, tail: Sentence = lambda _: "") -> Sentence:
    return lambda event: f"trial {event.trial}{text}{tail(event)}"


# One row a kind. `tests/unit/test_event_kinds.py` holds it against the enum and against the code that makes events.
EVENTS: Mapping[EventKind, Reported | NotReported] = {
    EventKind.TRIAL_PROPOSE: NotReported("the trial's first attempt is reported, with where it runs"),
    EventKind.TRIAL_SUBMIT: NotReported("the attempt is reported, with where it runs"),
    EventKind.TRIAL_BACK_OFF: Reported("warn", _about_trial(" waits for its next attempt", _why_waits)),
    EventKind.TRIAL_PAUSE: Reported("info", _about_trial(" is paused", _reason)),
    EventKind.TRIAL_SUCCEED: Reported("good", _about_trial(" succeeded")),
    EventKind.TRIAL_PRUNE: Reported("info", _pruned),
    EventKind.TRIAL_FAIL: Reported("error", _about_trial(" failed", _why_failed)),
    EventKind.TRIAL_CANCEL: Reported("warn", _about_trial(" cancelled")),
    EventKind.ATTEMPT_SUBMIT: Reported("info", _attempt),
    EventKind.ATTEMPT_WAIT: NotReported("every job waits before it trains, and the live table shows it"),
    EventKind.ATTEMPT_TRAIN: NotReported("the live table shows it, and how a run started is an event of its own"),
    EventKind.ATTEMPT_INTERRUPT: Reported(
        "warn",
        lambda e: f"capacity was taken from trial {e.trial}; its job waits for it",
        grouped_by=lambda _: "interruption",
        of_group=_taken_from_many,
    ),
    EventKind.ATTEMPT_RESTART: Reported("warn", _about_trial(": the job service restarted its job")),
    EventKind.ATTEMPT_STOP: NotReported("the reason to stop was reported before, and the job's end changes the trial"),
    EventKind.ATTEMPT_END: NotReported("the trial's next event says what the end means"),
    EventKind.HISTORY: NotReported("a row of the job's own history that changes nothing"),
    EventKind.UNFORESEEN: Reported(
        "warn", lambda e: f"trial {e.trial}: its job has an unexpected status {_of(e, 'status')}; it was only recorded"
    ),
    EventKind.LEDGER: NotReported("every summary shows what was spent"),
    EventKind.BILLING_MISSING: Reported(
        "warn",
        lambda e: f"trial {e.trial}: the job service gave no billed time; {_of(e, 'assumed_s')} s are assumed",
    ),
    EventKind.RUN_RESUMED: Reported("good", _resumed),
    EventKind.RUN_RESTARTED_FROM_ZERO: Reported("error", _from_zero),
    EventKind.RUN_OLDER_CHECKPOINT: Reported("error", _from_older),
    EventKind.RUN_NOTHING_SAVED: Reported("warn", _nothing_saved),
    EventKind.CHECKPOINT_TORN: Reported("warn", _torn),
    EventKind.STOP_WANTED: Reported("info", _stop, grouped_by=_why_stopped, of_group=_stop_of_many),
    EventKind.REROUTED: Reported("info", _rerouted),
    EventKind.REFUSED: Reported(
        "warn", lambda e: f"trial {e.trial} could not be submitted and is tried again: {_message(e)}"
    ),
    EventKind.REFUSED_CAPACITY: Reported("warn", lambda e: f"trial {e.trial} waits for capacity: {_message(e)}"),
    EventKind.ADOPTED: Reported("info", lambda e: f"trial {e.trial}: found and adopted its job {_of(e, 'job')}"),
    EventKind.FOREIGN: Reported(
        "error", lambda e: f"job {_of(e, 'job')} is not ours; trial {e.trial} uses the next name"
    ),
    EventKind.RETRY: Reported(
        "info", lambda e: f"trial {e.trial} repeats failed trial {_of(e, 'of')}, from a copy of its checkpoints"
    ),
    EventKind.COPIED: Reported(
        "info", lambda e: f"trial {e.trial}: copied {_of(e, 'files')} checkpoint files of trial {_of(e, 'of')}"
    ),
    EventKind.WARNING: Reported("warn", _message),
    EventKind.TROUBLE: Reported("warn", _message),
    EventKind.RECOVERED: Reported("good", lambda e: f"the job service accepts our calls again ({_of(e, 'what')})"),
    EventKind.DIFFERS: Reported("error", _message_and_remedy),
    EventKind.HALTED: Reported("error", _message_and_remedy),
    EventKind.METRIC_DIFFERS: Reported("warn", _metric_differs),
    EventKind.EXHAUSTED: Reported("info", lambda _: "the search space is exhausted: nothing is left to propose"),
    EventKind.REQUEST: Reported("info", lambda e: f"applied '{_asked(e)}' of {_of(e, 'who')}"),
    EventKind.REQUEST_REFUSED: Reported("warn", _request_refused),
    EventKind.RESUME: Reported("info", _resume),
    EventKind.MOVED: Reported("info", _moved),
    EventKind.CHANGES_ACCEPTED: Reported("info", _accepted),
    EventKind.STUDY: Reported("info", lambda e: f"the study is {_of(e, 'after')}"),
}

_NEWER = Reported("info", lambda e: f"an event of a newer version of tuner: {e.kind}")
