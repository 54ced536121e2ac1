"""The verbs that change a study: `set`, `stop`, `cancel`. Each leaves a request, which an engine applies.

Rules: a request is a row of the store. If no engine is alive to apply it, the verb takes the lease and does the work
itself. It does the same if the engine leaves or dies while the verb waits. For an engine on another host, only its
lease shows that.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from tuner.core.clock import Clock, SystemClock
from tuner.core.commands import Command, Message
from tuner.core.errors import Exit, UserError, how_to_go_on, left_behind
from tuner.core.events import EventKind
from tuner.core.records import Intent, Json, Lease, Request, Study, StudyState
from tuner.engine import requests
from tuner.engine.unit_of_work import UnitOfWork
from tuner.operations.backend import BACKENDS, Backends
from tuner.operations.context import operating_errors, user_name
from tuner.operations.drive import acquire, drive, outcome_of
from tuner.operations.records import Signals, StudyOutcome
from tuner.reports.events import narrate
from tuner.reports.records import Display, EventLine
from tuner.spec.records import MICROUSD
from tuner.spec.study_file import StudySpec, apply_set, spec_of
from tuner.store.store import LeaseHeld, Store

_WAIT_POLL_S = 0.5


def request_set(name: str, store: Store, assignments: Sequence[str], *, clock: Clock | None = None) -> list[Message]:
    """Change totals, parallelism or limits of a study; returns one line per assignment."""
    clock = clock or SystemClock()
    with operating_errors():
        study = store.study(name)
        if study.state is StudyState.CANCELLED:
            raise UserError(f"study {name} was cancelled: nothing of it changes any more", Exit.USAGE)
        before = spec_of(study)
        _check_totals(study, before, apply_set(before, assignments), store)
        pairs = [assignment.split("=", 1) for assignment in assignments]
        values: dict[str, Json] = {key: value for key, value in pairs}  # noqa: C416 - typed as JSON
        alive = _request(store, study, "set", values, clock)
        recorded = Message("recorded; go on with it: ", Command("resume", name))
        when = "at the engine's next tick" if alive else recorded
        return [Message(f"{key} = {value} (", when, ")") for key, value in values.items()]


def _check_totals(study: Study, before: StudySpec, spec: StudySpec, store: Store) -> None:
    """A total below what is there, or a budget below what is spent and reserved, could not be kept any more."""
    count = store.trial_count(study.id)
    if spec.trials < min(count, before.trials):
        raise UserError(
            f"trials: study {study.name} has {count} already; to end it with those: trials={count}", Exit.USAGE
        )
    if spec.budget.microusd is None:
        return
    summary = store.summary(study.id)
    bound = summary.spend_microusd + summary.reserved_microusd
    if spec.budget.microusd < bound:
        raise UserError(
            f"budget.usd: ${spec.budget.usd} is below what study {study.name} has spent and reserved, "
            f"${bound / MICROUSD:.4f}; give at least that, or stop the study first",
            Exit.USAGE,
        )


def request_stop(
    name: str,
    store: Store,
    *,
    display: Display,
    signals: Signals | None = None,
    now_: bool = False,
    drain: bool = False,
    wait: bool = True,
    clock: SystemClock | None = None,
    backends: Backends = BACKENDS,
) -> StudyOutcome:
    """Bring a study to rest: jobs are stopped at their next checkpoint, at once (`now_`), or finish (`drain`)."""
    intent = stop_intent(now_=now_, drain=drain)
    return _request_intent(
        name, store, "stop", intent, display=display, signals=signals, wait=wait, clock=clock, backends=backends
    )


def stop_intent(*, now_: bool, drain: bool) -> Intent:
    return Intent.DRAIN if drain else Intent.STOP_NOW if now_ else Intent.STOP


def request_cancel(
    name: str,
    store: Store,
    *,
    display: Display,
    signals: Signals | None = None,
    wait: bool = True,
    clock: SystemClock | None = None,
    backends: Backends = BACKENDS,
) -> StudyOutcome:
    """End a study: running jobs are stopped, unfinished trials are cancelled."""
    return _request_intent(
        name,
        store,
        "cancel",
        Intent.CANCEL,
        display=display,
        signals=signals,
        wait=wait,
        clock=clock,
        backends=backends,
    )


def _request_intent(
    name: str,
    store: Store,
    verb: str,
    intent: Intent,
    *,
    display: Display,
    signals: Signals | None,
    wait: bool,
    clock: SystemClock | None,
    backends: Backends,
) -> StudyOutcome:
    clock, signals = clock or SystemClock(), signals or Signals()
    with operating_errors():
        study = store.study(name)
        if study.state.ended:
            raise UserError(f"study {name} is {study.state} already: there is nothing to {verb}", Exit.USAGE)
        if study.intent is Intent.CANCEL and intent is not Intent.CANCEL:
            stays = f"study {name} is being cancelled, and that stays; go on with it: "
            raise UserError(Message(stays, how_to_go_on(name, Intent.CANCEL)), Exit.USAGE)
        signals.last_words = left_behind(name, intent)
        request = store.add_request(study.id, verb, {"intent": intent.value}, user_name(), clock.now())
        try:
            lease = acquire(store, study, clock, wait=False)
        except LeaseHeld:
            taken = (
                _wait_for_rest(store, study, request, display=display, signals=signals, clock=clock) if wait else None
            )
            if taken is None:
                left = store.study_by_id(study.id)
                if _is_pending(store, study, request):  # its engine will, or the next one
                    left = replace(left, intent=intent)
                return _as_requested(outcome_of(left, store, signals, clock.now()), waited=wait)
            lease = taken
        outcome = drive(
            store.study_by_id(study.id),
            lease,
            store,
            display=display,
            signals=signals,
            clock=clock,
            once=not wait,
            backends=backends,
        )
        return _as_requested(outcome, waited=wait)


def _as_requested(outcome: StudyOutcome, *, waited: bool) -> StudyOutcome:
    """The user asked for this rest: it is no failure to have reached it, nor to have only asked."""
    reached = not outcome.study_state.active or not waited
    return replace(outcome, exit_code=Exit.DONE) if reached else outcome


def _wait_for_rest(
    store: Store, study: Study, request: Request, *, display: Display, signals: Signals, clock: Clock
) -> Lease | None:
    """Until the engine elsewhere has applied the request and brought the study to rest; and show it.

    The lease, if that engine left or died before, so that the verb does the rest; None where nothing is left to do.
    """
    shown = ""
    while not signals.stop_requested:
        pending = _is_pending(store, study, request)
        current = store.study_by_id(study.id)
        if not pending and not current.state.active:
            return None
        if not pending and current.intent is Intent.RUN:
            raise UserError(
                f"the {request.verb} of study {study.name} was taken back: somebody resumed it", Exit.NOT_FINISHED
            )
        with suppress(LeaseHeld):
            return acquire(store, current, clock, wait=False)
        line = _waiting_for(current, store, pending=pending)
        if line != shown:
            display.event(EventLine(at=clock.now(), level="info", text=line))
            shown = line
        clock.wait(clock.now() + timedelta(seconds=_WAIT_POLL_S))
    return None


def _is_pending(store: Store, study: Study, request: Request) -> bool:
    return any(each.id == request.id for each in store.pending_requests(study.id))


def _waiting_for(study: Study, store: Store, *, pending: bool) -> str:
    if pending:
        return f"asked the engine of study {study.name} ({study.holder}); waiting for its next tick"
    live = store.summary(study.id).live_attempts
    return f"study {study.name} is {study.state}: {live} jobs in flight"


def _request(store: Store, study: Study, verb: str, values: dict[str, Json], clock: Clock) -> bool:
    """Leave a request for the engine; without one, apply it here. Returns whether an engine is alive.

    Raises UserError where it was applied here and refused.
    """
    request = store.add_request(study.id, verb, values, user_name(), clock.now())
    try:
        lease = acquire(store, study, clock, wait=False)
    except LeaseHeld:
        return True
    try:
        current = store.study_by_id(study.id)
        pending = store.pending_requests(study.id)
        if any(each.id == request.id for each in pending):
            unit = UnitOfWork.following(store, current, clock.now())
            for each in pending:
                requests.apply(unit, each)
            change = unit.change()
            assert change is not None, "an applied request is a change"
            store.commit(lease, change, now=clock.now())
            ours = change.events[[each.id for each in pending].index(request.id)]  # each request is one event
            if ours.kind == EventKind.REQUEST_REFUSED:
                raise UserError(narrate([ours])[0].text, Exit.USAGE)
    finally:
        store.release(lease)
    return False
