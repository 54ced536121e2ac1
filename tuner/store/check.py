"""The invariants of a store that can be checked without a cloud. Each is a function that names what breaks it.

`tuner status --check` and the simulation run the same checks: 1 events replay to rows, 2 one live attempt per trial,
3 terminal stays terminal, 5 money, 6 prefixes, 7 time. They repeat what the database's constraints should guarantee,
because a check that trusts what it checks finds nothing.

Rules: it only reads, through `Store` alone. Each finding is one line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from tuner.core.events import EventKind
from tuner.core.prices import cost_microusd
from tuner.core.records import Attempt, AttemptState, Event, Trial, TrialState
from tuner.core.states import AttemptEvent, IllegalTransition, TrialEvent, next_attempt_state, next_trial_state
from tuner.store.store import Store

# A live engine may write between two reads. Each change of state adds an event: if the last event is the same before
# and after, the rows are too.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class _Facts:
    trials: Sequence[Trial]
    attempts: Sequence[Attempt]
    events: Sequence[Event]


@dataclass(slots=True)
class _Replay:
    """The states that follow from the events."""

    trials: dict[int, TrialState] = field(default_factory=dict)
    attempts: dict[tuple[int, int], AttemptState] = field(default_factory=dict)


def check(store: Store, study_id: int) -> list[str]:
    """What does not hold in a study; an empty list if everything does."""
    facts = _read(store, study_id)
    replay = _Replay()
    return [
        *_numbering(facts),
        *_transitions(facts, replay),
        *_rows_as_replayed(facts, replay),
        *_values_as_recorded(facts),
        *_live_attempts(facts),
        *_money(facts),
        *_prefixes(facts),
        *_time(facts),
    ]


def _read(store: Store, study_id: int) -> _Facts:
    for _ in range(_TRIES):
        last = store.last_seq(study_id)
        facts = _Facts(store.trials(study_id), store.attempts(study_id), store.events(study_id))
        if store.last_seq(study_id) == last:
            break
    return facts


def _numbering(facts: _Facts) -> Iterator[str]:
    for due, event in enumerate(facts.events, start=1):
        if event.seq != due:
            yield f"event {due} is missing"
            return


def _transitions(facts: _Facts, replay: _Replay) -> Iterator[str]:
    """1 and 3: each transition starts where the last one ended, the tables allow it, and none follows an end."""
    for event in facts.events:
        machine, _, name = event.kind.partition(".")
        try:
            if machine == "trial":
                _move_trial(event, name, replay)
            elif machine == "attempt":
                _move_attempt(event, name, replay)
        except (IllegalTransition, ValueError) as error:
            yield f"event {event.seq} ({event.kind}, {_whose(event)}): {error}"


def _move_trial(event: Event, name: str, replay: _Replay) -> None:
    if event.trial is None:
        raise ValueError("it names no trial")
    was = replay.trials.get(event.trial)
    if event.after is not None:  # continue from the state it claims, so that one fault is one line
        replay.trials[event.trial] = TrialState(event.after)
    if name == "propose":
        _expect(event, None if was is None else was.value, None, TrialState.PROPOSED)
    elif was is None:
        raise ValueError("it was never proposed")
    else:
        _expect(event, was, was, next_trial_state(was, TrialEvent(name)))


def _move_attempt(event: Event, name: str, replay: _Replay) -> None:
    if event.trial is None or event.attempt is None:
        raise ValueError("it names no attempt")
    key = (event.trial, event.attempt)
    was = replay.attempts.get(key)
    if event.after is not None:
        replay.attempts[key] = AttemptState(event.after)
    if name == "submit":
        _expect(event, None if was is None else was.value, None, AttemptState.SUBMITTING)
    elif was is None:
        raise ValueError("it was never submitted")
    else:
        _expect(event, was, was, next_attempt_state(was, AttemptEvent(name)))


def _expect(event: Event, was: str | None, before: str | None, after: str) -> None:
    """Check that the event says `before` and `after`, and that the state was `before`."""
    if was != before:
        raise ValueError(f"it was {was} already")
    if (event.before, event.after) != (before, after):
        raise ValueError(f"it says {event.before} → {event.after}, and is {before} → {after}")


def _rows_as_replayed(facts: _Facts, replay: _Replay) -> Iterator[str]:
    """1: replayed events give the states of the rows."""
    replayed = {f"trial {n}": str(s) for n, s in replay.trials.items()}
    replayed |= {f"trial {t} attempt {n}": str(s) for (t, n), s in replay.attempts.items()}
    kept = {f"trial {t.number}": str(t.state) for t in facts.trials}
    kept |= {f"trial {a.trial} attempt {a.number}": str(a.state) for a in facts.attempts}
    for name in sorted(replayed.keys() | kept.keys()):
        if replayed.get(name) != kept.get(name):
            yield f"{name}: its events end in {replayed.get(name, 'nothing')}, its row is {kept.get(name, 'missing')}"


def _values_as_recorded(facts: _Facts) -> Iterator[str]:
    """1: a trial's values are those that the event of its end has."""
    recorded = {event.trial: event.details["values"] for event in facts.events if "values" in event.details}
    for trial in facts.trials:
        values = None if trial.values is None else list(trial.values)
        if trial.number in recorded and recorded[trial.number] != values:
            yield f"trial {trial.number} has values {values}, its events say {recorded[trial.number]}"


def _live_attempts(facts: _Facts) -> Iterator[str]:
    """2, within the store: only the last attempt of a trial may be live, and none of a trial that has ended."""
    ended = {t.number for t in facts.trials if t.state.terminal}
    for before, after in pairwise(facts.attempts):
        if before.trial == after.trial and before.live:
            yield f"trial {before.trial}: attempt {before.number} is live beside attempt {after.number}"
    for attempt in facts.attempts:
        if attempt.live and attempt.trial in ended:
            yield f"trial {attempt.trial} has ended, and its attempt {attempt.number} is {attempt.state}"


def _money(facts: _Facts) -> Iterator[str]:
    """5: an attempt cost its billed time at its rate."""
    for attempt in facts.attempts:
        if attempt.spend_microusd is None:
            continue
        due = cost_microusd(attempt.billable_s or 0, attempt.instance_count, attempt.rate_microusd_per_h)
        if attempt.spend_microusd != due:
            name = f"trial {attempt.trial} attempt {attempt.number}"
            yield f"{name}: {attempt.spend_microusd} µ$ are booked, {attempt.billable_s} s at its rate are {due} µ$"


def _prefixes(facts: _Facts) -> Iterator[str]:
    """6: a trial's prefix ends in a slash; no other trial's prefix equals it or lies inside it."""
    by_prefix = sorted((t.prefix, t.number) for t in facts.trials)
    for prefix, number in by_prefix:
        if not prefix.endswith("/"):
            yield f"trial {number}: its prefix {prefix} does not end in a slash"
    for (outer, one), (inner, other) in pairwise(by_prefix):
        if inner.startswith(outer):
            yield f"trials {one} and {other} share the prefix {outer}"


def _time(facts: _Facts) -> Iterator[str]:
    """7: recorded times never go back within a study, nor the source's times within an attempt's history."""
    for before, after in pairwise(facts.events):
        if after.recorded_at < before.recorded_at:
            yield f"event {after.seq} was recorded before event {before.seq}"
    latest: dict[tuple[int | None, int | None], datetime] = {}
    for event in facts.events:
        if event.kind != EventKind.HISTORY:
            continue
        whose = (event.trial, event.attempt)
        if event.happened_at < latest.get(whose, event.happened_at):
            yield f"event {event.seq} ({_whose(event)}): its history runs back"
        latest[whose] = event.happened_at


def _whose(event: Event) -> str:
    return f"trial {event.trial}" + ("" if event.attempt is None else f" attempt {event.attempt}")
