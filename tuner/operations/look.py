"""The verbs that look at a study beyond its records: `status --check`, `logs`, `audit`, `gc`.

Rules: nothing of a study is changed here, with two exceptions: `gc` deletes checkpoints that the study file does not
keep, and `audit --stop-orphans` stops jobs that nobody asked for.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from tuner.core.clock import Clock, SystemClock
from tuner.core.commands import Command, Message
from tuner.core.errors import Exit, UserError, how_to_go_on
from tuner.core.events import EventKind
from tuner.core.records import Study
from tuner.operations import lease_holder, retention
from tuner.operations.backend import BACKENDS, Backends
from tuner.operations.context import operating_errors
from tuner.operations.retention import Survey
from tuner.reports.records import Audit
from tuner.spec.study_file import spec_of
from tuner.store.check import check as check_store
from tuner.store.store import Store

# An engine that has not ticked for this many polls is not healthy.
_TICKS_MISSED_MAX = 5
# A study driven by cycles is not healthy after this long without one: cron calls every few minutes.
_CYCLE_MISSED_S = 15 * 60.0


def gc(name: str, store: Store, *, dry_run: bool = False, backends: Backends = BACKENDS) -> Survey:
    """Delete the checkpoints of ended trials that the study file does not keep; `dry_run` only says which."""
    with operating_errors():
        study = store.study(name)
        return retention.sweep(store, study, backends.of(study).objects(), dry_run=dry_run)


def check(name: str, store: Store, *, clock: Clock | None = None) -> list[str | Message]:
    """Invariants that need no cloud, and the engine's health; no line means all is well."""
    now = (clock or SystemClock()).now()
    with operating_errors():
        study = store.study(name)
        lines: list[str | Message] = list(check_store(store, study.id))
    if study.state.active:
        with operating_errors():
            cycles = study.holder is None and _driven_by_cycles(study, store)
        lines += _engine_health(study, now, cycles=cycles)
    return lines


def _driven_by_cycles(study: Study, store: Store) -> bool:
    """Whether a cycle of cron took the study up last: between two cycles no engine is alive."""
    taken_up = [event for event in store.events(study.id) if event.kind == EventKind.RESUME]
    return bool(taken_up) and taken_up[-1].details.get("once") is True


def _engine_health(study: Study, now: datetime, *, cycles: bool) -> list[Message]:
    remedy = how_to_go_on(study.name, study.intent)
    poll_s = max(spec_of(study).settings.poll_interval_s, 1.0)
    quiet_s = (now - (study.last_tick_at or study.created_at)).total_seconds()
    if cycles:
        if quiet_s <= max(_CYCLE_MISSED_S, _TICKS_MISSED_MAX * poll_s):
            return []
        ago = f"{quiet_s / 60:.0f} min ago: see to what calls for them, or: "
        return [Message(f"study {study.name} is {study.state}, but its last cycle (resume --once) was {ago}", remedy)]
    if study.holder is None or lease_holder.gone(study.holder):
        return [Message(f"study {study.name} is {study.state}, but no engine is alive: ", remedy)]
    if quiet_s > _TICKS_MISSED_MAX * poll_s:
        silent = f"the engine of study {study.name} ({study.holder}) has not ticked for {quiet_s:.0f} s: "
        return [Message(silent, remedy)]
    return []


def log_chunks(
    name: str,
    store: Store,
    trial: int,
    *,
    attempt: int | None = None,
    tail: int | None = None,
    follow: bool = False,
    clock: Clock | None = None,
    backends: Backends = BACKENDS,
) -> Iterator[str]:
    """The output of a trial's script, run after run; with `follow` until the trial has ended."""
    clock = clock or SystemClock()
    with operating_errors():
        study = store.study(name)
        numbers = [each.number for each in store.attempts(study.id, trial=trial)]
    if not numbers:
        none = f"study {name} has no job for trial {trial}: "
        raise UserError(Message(none, Command("trials", name), " lists them"), Exit.USAGE)
    if attempt is not None and attempt not in numbers:
        raise UserError(f"trial {trial} of study {name} has no attempt {attempt}", Exit.USAGE)

    def jobs() -> tuple[list[str], bool]:
        names = [each.job_name for each in store.attempts(study.id, trial=trial) if attempt in (None, each.number)]
        return names, not store.trials(study.id, numbers=[trial])[0].state.terminal

    backend, spec = backends.of(study), spec_of(study)
    with operating_errors():
        yield from backend.logs(jobs, spec, tail=tail, follow=follow, clock=clock)


def audit(
    name: str,
    store: Store,
    *,
    stop_orphans: bool = False,
    clock: Clock | None = None,
    backends: Backends = BACKENDS,
) -> Audit:
    """The store against the job service; `stop_orphans` first stops the jobs that nobody asked for."""
    from tuner.reports import audit as auditor  # noqa: PLC0415 - with the service comes boto3

    with operating_errors():
        study = store.study(name)
        backend = backends.of(study)
        backend.verify()
        spec, jobs = spec_of(study), backend.jobs_in_turn(store, clock or SystemClock())
        stopped = tuple(auditor.orphans(study, spec, store, jobs)) if stop_orphans else ()
        for orphan in stopped:
            jobs.stop(orphan.job)
        return replace(auditor.audit(study, spec, store, jobs), stopped=stopped)
