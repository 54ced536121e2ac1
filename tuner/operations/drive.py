"""Driving a study: become its writer, run an engine on its backend, and return what it came to.

The verbs that start, resume, stop or end a study share this; they differ in what they settle before.

Rules: the driver holds the lease and always gives it back. Checkpoints that the study file does not keep are deleted
only once the study rests, and only while the lease is held. Refused credentials have an exit code of their own when
only one cycle is driven.
"""

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tuner.core.clock import Clock, SystemClock
from tuner.core.commands import Command, Message
from tuner.core.errors import Exit, UserError, left_behind
from tuner.core.records import Lease, Study, StudyState, TrialState
from tuner.operations import lease_holder, retention
from tuner.operations.backend import BACKENDS, Backend, Backends
from tuner.operations.records import Signals, StudyOutcome
from tuner.reports import views
from tuner.reports.records import Display, EventLine
from tuner.spec.study_file import spec_of
from tuner.store.store import LONG_STEP_S, LeaseHeld, Store, StoreUnreachable

if TYPE_CHECKING:
    from tuner.engine.engine import Engine  # imports Optuna


def acquire(store: Store, study: Study, clock: Clock, *, wait: bool = True) -> Lease:
    """Become the writer of a study, or say who is. A holder on another host is given one lease period to renew."""
    from tuner.engine.engine import LEASE_S  # noqa: PLC0415 - imports Optuna

    holder = lease_holder.this_process()
    try:
        return store.acquire(study.id, holder, now=clock.now(), period_s=LEASE_S, gone=lease_holder.gone)
    except LeaseHeld as error:
        if error.holder.host == holder.host or not wait:
            raise
        clock.wait(error.expires_at + timedelta(seconds=1))
    return store.acquire(study.id, holder, now=clock.now(), period_s=LEASE_S, gone=lease_holder.gone)


def drive(
    study: Study,
    lease: Lease,
    store: Store,
    *,
    display: Display,
    signals: Signals,
    clock: SystemClock,
    once: bool = False,
    backends: Backends = BACKENDS,
) -> StudyOutcome:
    from tuner.engine.engine import Engine  # noqa: PLC0415 - imports Optuna
    from tuner.reports.narrate import DisplayListener  # noqa: PLC0415

    signals.last_words = signals.last_words or left_behind(study.name, study.intent)
    signals.attach(clock.wake)
    engine: Engine | None = None
    try:
        backend = backends.of(study)
        backend.verify()
        listener = DisplayListener(display, store)
        services = backend.services(study, spec_of(study), store=store, clock=clock, listener=listener)
        engine = Engine(study, lease, services)
        if once:
            engine.cycle(lambda: signals.stop_requested)
        else:
            engine.run(lambda: signals.stop_requested)
        _apply_retention(store.study_by_id(study.id), engine.lease, store, display, clock, backend)
    except StoreUnreachable as error:
        if signals.stop_requested:  # the signal was heard while the engine waited for the store
            raise UserError(Message(f"{error}; ", signals.last_words), signals.exit_code or Exit.REFUSED) from error
        raise
    finally:
        display.close()
        with suppress(StoreUnreachable):  # then the lease runs out by itself, and what went wrong first is said
            store.release(engine.lease if engine else lease)
    outcome = outcome_of(store.study_by_id(study.id), store, signals, clock.now())
    refused = _refused(engine, once=once)
    return outcome if refused is None else replace(outcome, exit_code=Exit.REFUSED, refused=refused)


def _refused(engine: "Engine", *, once: bool) -> str | Message | None:
    """What the user must see to. An engine that goes on waits for new credentials; a single cycle cannot."""
    live = engine.live
    return live.halted or (live.refused if once else None)


def _apply_retention(  # noqa: PLR0917 - what the engine had
    study: Study, lease: Lease, store: Store, display: Display, clock: Clock, backend: Backend
) -> None:
    """Delete what the study file does not keep, once the study rests; a store of objects that refuses is no failure.

    Raises LeaseLost.
    """
    from tuner.storage.objects import ObjectsError  # noqa: PLC0415 - small

    if study.state.active:
        return

    def renew() -> None:
        store.renew(lease, now=clock.now(), period_s=LONG_STEP_S)

    try:
        found = retention.sweep(store, study, backend.objects(), dry_run=False, renew=renew)
    except ObjectsError as error:
        again = Message(f"checkpoints could not be deleted: {error}; again: ", Command("gc", study.name))
        display.event(EventLine(at=clock.now(), level="warn", text=again))
        return
    if found.waste:
        text = (
            f"checkpoints.keep is {found.keep}: deleted {found.size_bytes} bytes of checkpoints and outputs of "
            f"{len(found.waste)} trials that have ended"
        )
        display.event(EventLine(at=clock.now(), level="info", text=text))


def outcome_of(study: Study, store: Store, signals: Signals, now: datetime) -> StudyOutcome:
    summary = views.summary_view(store, study, now, options=signals.options)
    return StudyOutcome(study_state=study.state, exit_code=_exit_code(study, store, signals), summary=summary)


def _exit_code(study: Study, store: Store, signals: Signals) -> int:
    if study.state is StudyState.CANCELLED:
        return Exit.DONE
    if study.state is not StudyState.FINISHED:
        return signals.exit_code or Exit.NOT_FINISHED
    counts = store.summary(study.id).trials
    every_trial_failed = counts.get(TrialState.FAILED, 0) == sum(counts.values()) > 0
    return Exit.CHECK_FAILED if every_trial_failed else Exit.DONE
