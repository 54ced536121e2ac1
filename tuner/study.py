"""The composition root, and the verbs that the command line, the web and `import tuner` share.

It chooses the world, checks a study against it before anything is written, wires engine, store, proposer and service,
and turns every operating error into one line with an exit code (`UserError`). It decides nothing about trials.

Rules: a verb that only reads touches the store alone. A verb that changes a study writes a request; if no engine is
alive to apply it, the verb takes the lease and does the work itself. Nothing is written before everything that can be
checked was checked.
"""

import getpass
import os
import random
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from tuner import holders, local_view, requests, retention, views, workload, worlds
from tuner.clock import Clock, SystemClock
from tuner.jobs import JobError
from tuner.model import Intent, Json, Lease, Request, Study, StudyState, TrialState
from tuner.prices import PriceUnknown, Rate, RateCard
from tuner.retention import Survey
from tuner.spec import SpecError, StudySpec, apply_set, describe, from_json, load, refuse_unbuilt, to_json
from tuner.spec_records import MICROUSD
from tuner.store import (
    LeaseHeld,
    LeaseLost,
    Store,
    StoreTooNew,
    StoreUnreachable,
    StudyExists,
    StudyNotFound,
)
from tuner.store_check import check as check_store
from tuner.unit import UnitOfWork
from tuner.verbs import Audit, Display, EventLine, Exit, Outcome, Plan, Signals, UserError

STORE_VARIABLE = "TUNER_STORE"
DEFAULT_STORE = "sqlite:///tuner.db"
# No vowels, digits or `e`: keys stay clear of words and of numbers in disguise (12e4).
_KEY_LETTERS = "bcdfghjklmnpqrstvwxz"
_KEY_LENGTH = 6
# Billed over training time that is assumed before anything was learned: mean saving of 60 % in the Spot Advisor's
# table of 2025-06-28 for the types that SageMaker trains on.
_ASSUMED_SPOT_RATIO = 0.4
# A running engine that has not ticked for so many polls is not well.
_TICKS_MISSED_MAX = 5
_WAIT_POLL_S = 0.5


@contextmanager
def _operating_errors() -> Iterator[None]:
    """Every error that is not a bug, as one line with its exit code."""
    from tuner.objects import ObjectsError  # noqa: PLC0415 - small
    from tuner.packaging import BundleRefused  # noqa: PLC0415

    try:
        yield
    except (SpecError, PriceUnknown, BundleRefused, StudyNotFound) as error:
        raise UserError(str(error), Exit.USAGE) from error
    except (LeaseHeld, LeaseLost) as error:
        raise UserError(str(error), Exit.NOT_FINISHED) from error
    except (StoreUnreachable, StoreTooNew, ObjectsError) as error:
        raise UserError(str(error), Exit.REFUSED) from error


def open_store(url: str | None) -> Store:
    """The store that the user means: `url`, else TUNER_STORE, else `sqlite:///tuner.db`; made on first use."""
    with _operating_errors():
        return Store.open(url or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)


def find(name: str, store: Store) -> Study:
    """The study of this name, or a line that names those there are."""
    with _operating_errors():
        return store.study(name)


def owner_to_ask(name: str, store: Store) -> str | None:
    """Whose study this is, where it is not the user's own: who spends or destroys there is asked first.

    A courtesy among people who share a database, no guard: whoever can write to it can do everything.
    """
    owner = find(name, store).owner
    return None if owner == _user() else owner


# --- plan and launch


def plan(file: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a study file and check it against everything that can be checked before it is launched."""
    with _operating_errors():
        spec = load(file, overrides)
        refuse_unbuilt(spec)
        worlds.make_proposer(spec)
        worlds.make_bundle(spec)
        rate = RateCard(spec.prices).rate(spec.training.instance_types[0], spec.region)
        worst_case_usd = workload.worst_case_microusd(spec) / MICROUSD
    training = spec.training
    hours = spec.trials * training.max_run_s * training.instance_count / 3600
    at_most = hours * float(rate.usd_per_hour)
    ratio = _ASSUMED_SPOT_RATIO if spec.capacity.policy == "spot" else 1.0
    budget = spec.budget.usd
    return Plan(
        spec=spec,
        headline=tuple(_headline(spec, rate, at_most, worst_case_usd)),
        rows=tuple(describe(spec)),
        estimated_usd=at_most * ratio,
        ceiling_usd=at_most if budget is None else float(budget),
        warnings=spec.warnings,
    )


def _headline(spec: StudySpec, rate: Rate, at_most_usd: float, worst_case_usd: float) -> Iterator[tuple[str, str]]:
    """What to look at before a study runs."""
    training, pruner = spec.training, spec.search.pruner
    where = "this machine" if spec.backend == "local" else spec.region
    yield "study", f"{spec.name}, on {where}"
    yield "trials", f"{spec.trials}, {spec.parallel} at a time"
    yield "search", spec.search.sampler.name + (f", {pruner.name}" if pruner else ", no pruner")
    capacity = "spot" if spec.capacity.policy == "spot" else "on demand"
    yield "each on", f"{training.instance_count} x {' or '.join(training.instance_types)}, {capacity}"
    yield "rate", f"${rate.usd_per_hour}/h ({rate.basis}{f', {rate.as_of}' if rate.as_of else ''})"
    yield "if every trial used its whole max_run", f"${at_most_usd:.2f} on demand"
    if capacity == "spot":
        # what AWS leaves open: whether MaxRuntime counts on after an interruption
        yield "at most, if max_run counts each run anew", f"${worst_case_usd:.2f}"


def launch(
    planned: Plan,
    store: Store,
    *,
    display: Display,
    signals: Signals,
    clock: SystemClock | None = None,
    rng: random.Random | None = None,
) -> Outcome:
    """Record a new study and drive it. `rng` draws the study's key; tests give a seeded one."""
    from tuner.sampler_view import choose_earlier  # noqa: PLC0415 - imports Optuna

    clock = clock or SystemClock()
    spec = planned.spec
    with _operating_errors():
        directory = worlds.default_local_dir()
        study = _new_study(spec, directory, clock.now(), rng or secrets.SystemRandom())
        if any(other.name == spec.name for other in store.studies()):
            raise UserError(_exists(spec.name), Exit.USAGE)
        attrs = choose_earlier(store, spec, worlds.make_proposer(spec)) if spec.search.warm_start else {}
        study = replace(study, attrs=attrs, bundle_uri=worlds.upload_bundle(spec, directory), warnings=planned.warnings)
        try:
            study = store.create_study(study)
        except StudyExists as error:
            raise UserError(_exists(spec.name), Exit.USAGE) from error
        lease = _acquire(store, study, clock)
        return _drive(study, lease, store, display=display, signals=signals, clock=clock)


def _exists(name: str) -> str:
    return f"a study named {name} exists; go on with it: tuner resume {name} (or choose another name)"


def _new_study(spec: StudySpec, directory: Path, now: datetime, rng: random.Random) -> Study:
    key = "".join(rng.choice(_KEY_LETTERS) for _ in range(_KEY_LENGTH))
    return Study(
        id=0,
        name=spec.name,
        key=f"{spec.name}-{key}",
        owner=_user(),
        state=StudyState.RUNNING,
        version=0,
        spec=to_json(spec),
        backend=spec.backend,
        bundle_uri="",
        local_dir=str(directory),
        intent=Intent.RUN,
        intent_at=now,
        created_at=now,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"  # a container without a user database


# --- driving a study


def _acquire(store: Store, study: Study, clock: Clock, *, wait: bool = True) -> Lease:
    """Become the writer of a study, or say who is. A holder on another host is given one lease period to renew."""
    from tuner.engine import LEASE_S  # noqa: PLC0415 - imports Optuna

    holder = holders.this_process()
    try:
        return store.acquire(study.id, holder, now=clock.now(), period_s=LEASE_S, gone=holders.gone)
    except LeaseHeld as error:
        if error.holder.host == holder.host or not wait:
            raise
        clock.wait(error.expires_at + timedelta(seconds=1))
    return store.acquire(study.id, holder, now=clock.now(), period_s=LEASE_S, gone=holders.gone)


def _drive(
    study: Study,
    lease: Lease,
    store: Store,
    *,
    display: Display,
    signals: Signals,
    clock: SystemClock,
    once: bool = False,
) -> Outcome:
    from tuner.engine import Engine  # noqa: PLC0415 - imports Optuna
    from tuner.watch import DisplayWatcher  # noqa: PLC0415

    signals.last_words = signals.last_words or _how_to_go_on(study.name)
    signals.attach(clock.wake)
    spec = from_json(study.spec)
    world = worlds.make_world(study, spec, store=store, clock=clock, watcher=DisplayWatcher(display, store))
    engine: Engine | None = None
    try:
        engine = Engine(study, lease, world)
        if once:
            engine.tick()
        else:
            engine.run(lambda: signals.stop_requested)
        _apply_retention(store.study_by_id(study.id), store, display, clock.now())
    finally:
        display.close()
        with suppress(StoreUnreachable):  # then the lease runs out by itself, and what went wrong first is said
            store.release(engine.lease if engine else lease)
    return _outcome(store.study_by_id(study.id), store, signals, clock.now())


def _apply_retention(study: Study, store: Store, display: Display, now: datetime) -> None:
    """Delete what the study file does not keep, once the study rests; a store of objects that refuses is no failure."""
    from tuner.objects import ObjectsError  # noqa: PLC0415 - small

    if study.state.active:
        return
    try:
        found = _collect(study, store, dry_run=False)
    except ObjectsError as error:
        text = f"checkpoints could not be deleted: {error}; again: tuner gc {study.name}"
        display.event(EventLine(at=now, level="warn", text=text))
        return
    if found.waste:
        text = (
            f"checkpoints.keep is {found.keep}: deleted {found.size_bytes} bytes of checkpoints of "
            f"{len(found.waste)} trials that have ended"
        )
        display.event(EventLine(at=now, level="info", text=text))


def _collect(study: Study, store: Store, *, dry_run: bool) -> Survey:
    objects = worlds.object_store(worlds.local_dir(study))
    found = retention.survey(store, study, objects)
    if not dry_run:
        retention.collect(found, study, objects)
    return found


def gc(name: str, store: Store, *, dry_run: bool = False) -> Survey:
    """Delete the checkpoints of ended trials that the study file does not keep; `dry_run` only says which."""
    with _operating_errors():
        return _collect(store.study(name), store, dry_run=dry_run)


def _how_to_go_on(name: str) -> str:
    return f"jobs go on; resume: tuner resume {name}   end: tuner cancel {name}"


def _outcome(study: Study, store: Store, signals: Signals, now: datetime) -> Outcome:
    summary = views.summary_view(store, study, now)
    return Outcome(study_state=study.state, exit_code=_exit_code(study, store, signals), summary=summary)


def _exit_code(study: Study, store: Store, signals: Signals) -> int:
    if study.state is StudyState.CANCELLED:
        return Exit.DONE
    if study.state is not StudyState.FINISHED:
        return signals.exit_code or Exit.NOT_FINISHED
    counts = store.summary(study.id).trials
    every_trial_failed = counts.get(TrialState.FAILED, 0) == sum(counts.values()) > 0
    return Exit.CHECK_FAILED if every_trial_failed else Exit.DONE


# --- resume


def resume(
    name: str,
    store: Store,
    *,
    display: Display,
    signals: Signals,
    accept_changes: bool = False,
    retry_failed: bool = False,
    once: bool = False,
    no_wait: bool = False,
    clock: SystemClock | None = None,
) -> Outcome:
    """Reconcile a study with what happened meanwhile, and carry on. May be repeated.

    `retry_failed` gives the parameters of failed trials to new ones, outside the total.
    """
    from tuner.reconcile import Reconciler, Resumption  # noqa: PLC0415 - with it comes boto3

    clock = clock or SystemClock()
    with _operating_errors():
        study = store.study(name)
        if study.state is StudyState.CANCELLED:
            raise UserError(f"study {name} was cancelled: launch a new one", Exit.USAGE)
        lease = _acquire(store, study, clock, wait=not no_wait)
        try:
            wish = Resumption(_user(), accept_changes, retry_failed)
            reconciler = Reconciler(store, lease, display, clock.now())
            study = reconciler.take_up(store.study_by_id(study.id), wish)
            if not once:  # a cycle of cron's is short
                reconciler.report_orphans(study)
        except BaseException:
            store.release(lease)
            raise
        return _drive(study, lease, store, display=display, signals=signals, clock=clock, once=once)


def resume_all_once(
    store: Store, *, display: Display, signals: Signals, others_too: bool = False
) -> list[tuple[str, Outcome]]:
    """One cycle over every study that an engine is expected for; a study held by another engine is passed over.

    So are those of other users, but for `others_too`: nobody can be asked.
    """
    outcomes = []
    for study in store.studies():
        if not study.state.active or signals.stop_requested:
            continue
        if study.owner != _user() and not others_too:
            passed_over = f"belongs to {study.owner}: passed over (--force takes it along)"
            outcomes.append((study.name, Outcome(study_state=study.state, exit_code=0, summary={"error": passed_over})))
            continue
        try:
            outcome = resume(study.name, store, display=display, signals=signals, once=True, no_wait=True)
        except UserError as error:
            outcome = Outcome(study_state=study.state, exit_code=error.exit_code, summary={"error": str(error)})
        outcomes.append((study.name, outcome))
    return outcomes


# --- set, stop, cancel


def request_set(name: str, store: Store, assignments: Sequence[str], *, clock: Clock | None = None) -> list[str]:
    """Change totals, parallelism or limits of a study; returns one line per assignment."""
    clock = clock or SystemClock()
    with _operating_errors():
        study = store.study(name)
        if study.state is StudyState.CANCELLED:
            raise UserError(f"study {name} was cancelled: nothing of it changes any more", Exit.USAGE)
        spec = apply_set(from_json(study.spec), assignments)
        _check_totals(study, spec, store)
        pairs = [assignment.split("=", 1) for assignment in assignments]
        values: dict[str, Json] = {key: value for key, value in pairs}  # noqa: C416 - typed as JSON
        alive = _request(store, study, "set", values, clock)
        when = "at the engine's next tick" if alive else f"recorded; go on with it: tuner resume {name}"
        return [f"{key} = {value} ({when})" for key, value in values.items()]


def _check_totals(study: Study, spec: StudySpec, store: Store) -> None:
    """A total below what is there, or a budget below what is spent and reserved, could not be kept any more."""
    count = store.trial_count(study.id)
    if spec.trials < min(count, from_json(study.spec).trials):
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
) -> Outcome:
    """Bring a study to rest: jobs are stopped at their next checkpoint, at once (`now_`), or finish (`drain`)."""
    intent = Intent.DRAIN if drain else Intent.STOP_NOW if now_ else Intent.STOP
    return _request_intent(name, store, "stop", intent, display=display, signals=signals, wait=wait, clock=clock)


def request_cancel(
    name: str,
    store: Store,
    *,
    display: Display,
    signals: Signals | None = None,
    wait: bool = True,
    clock: SystemClock | None = None,
) -> Outcome:
    """End a study: running jobs are stopped, unfinished trials are cancelled."""
    return _request_intent(
        name, store, "cancel", Intent.CANCEL, display=display, signals=signals, wait=wait, clock=clock
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
) -> Outcome:
    clock, signals = clock or SystemClock(), signals or Signals()
    with _operating_errors():
        study = store.study(name)
        if study.state.ended:
            raise UserError(f"study {name} is {study.state} already: there is nothing to {verb}", Exit.USAGE)
        request = store.add_request(study.id, verb, {"intent": intent.value}, _user(), clock.now())
        try:
            lease = _acquire(store, study, clock, wait=False)
        except LeaseHeld:
            if wait:
                _wait_for_rest(store, study, request, display=display, signals=signals, clock=clock)
            return _wished(_outcome(store.study_by_id(study.id), store, signals, clock.now()), waited=wait)
        outcome = _drive(
            store.study_by_id(study.id), lease, store, display=display, signals=signals, clock=clock, once=not wait
        )
        return _wished(outcome, waited=wait)


def _wished(outcome: Outcome, *, waited: bool) -> Outcome:
    """The user asked for this rest: it is no failure to have reached it, nor to have only asked."""
    reached = not outcome.study_state.active or not waited
    return replace(outcome, exit_code=Exit.DONE) if reached else outcome


def _wait_for_rest(
    store: Store, study: Study, request: Request, *, display: Display, signals: Signals, clock: Clock
) -> None:
    """Until the engine elsewhere has applied the request and brought the study to rest, or has died; and show it."""
    signals.last_words = f"the {request.verb} stays requested: tuner status {study.name}"
    shown = ""
    while not signals.stop_requested:
        pending = any(each.id == request.id for each in store.pending_requests(study.id))
        current = store.study_by_id(study.id)
        if not pending and not current.state.active:
            return
        if current.holder is None or holders.gone(current.holder):
            raise UserError(
                f"the engine of study {study.name} ended before it was done: tuner resume {study.name} goes on with it",
                Exit.NOT_FINISHED,
            )
        line = _waiting_for(current, store, pending=pending)
        if line != shown:
            display.event(EventLine(at=clock.now(), level="info", text=line))
            shown = line
        clock.wait(clock.now() + timedelta(seconds=_WAIT_POLL_S))


def _waiting_for(study: Study, store: Store, *, pending: bool) -> str:
    if pending:
        return f"asked the engine of study {study.name} ({study.holder}); waiting for its next tick"
    live = store.summary(study.id).live_attempts
    return f"study {study.name} is {study.state}: {live} jobs in flight"


def _request(store: Store, study: Study, verb: str, values: dict[str, Json], clock: Clock) -> bool:
    """Leave a request for the engine; without one, apply it here. Returns whether an engine is alive."""
    request = store.add_request(study.id, verb, values, _user(), clock.now())
    try:
        lease = _acquire(store, study, clock, wait=False)
    except LeaseHeld:
        return True
    try:
        current = store.study_by_id(study.id)
        pending = store.pending_requests(study.id)
        if any(each.id == request.id for each in pending):
            unit = UnitOfWork(current, last_seq=store.last_seq(study.id), now=clock.now())
            for each in pending:
                requests.apply(unit, each)
            change = unit.change()
            assert change is not None, "an applied request is a change"
            store.commit(lease, change, now=clock.now())
    finally:
        store.release(lease)
    return False


# --- looking at a study


def check(name: str, store: Store, *, clock: Clock | None = None) -> list[str]:
    """Invariants that need no cloud, and the engine's health; no line means all is well."""
    now = (clock or SystemClock()).now()
    with _operating_errors():
        study = store.study(name)
        lines = list(check_store(store, study.id))
    if study.state.active:
        lines += _engine_health(study, now)
    return lines


def _engine_health(study: Study, now: datetime) -> list[str]:
    remedy = f"tuner resume {study.name}"
    if study.holder is None or holders.gone(study.holder):
        return [f"study {study.name} is {study.state}, but no engine is alive: {remedy}"]
    poll_s = from_json(study.spec).settings.poll_interval_s
    quiet_s = (now - (study.last_tick_at or study.created_at)).total_seconds()
    if quiet_s > _TICKS_MISSED_MAX * max(poll_s, 1.0):
        return [f"the engine of study {study.name} ({study.holder}) has not ticked for {quiet_s:.0f} s: {remedy}"]
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
) -> Iterator[str]:
    """The output of a trial's script, run after run; with `follow` until the trial has ended."""
    with _operating_errors():
        study = store.study(name)
        numbers = [each.number for each in store.attempts(study.id, trial=trial)]
    if not numbers:
        raise UserError(f"study {name} has no job for trial {trial}: tuner trials {name} lists them", Exit.USAGE)
    if attempt is not None and attempt not in numbers:
        raise UserError(f"trial {trial} of study {name} has no attempt {attempt}", Exit.USAGE)

    def jobs() -> tuple[list[str], bool]:
        names = [each.job_name for each in store.attempts(study.id, trial=trial) if attempt in (None, each.number)]
        return names, not store.trials(study.id, numbers=[trial])[0].state.terminal

    yield from local_view.read_logs(
        worlds.local_dir(study), jobs, tail=tail, follow=follow, clock=clock or SystemClock()
    )


def audit(name: str, store: Store, *, stop_orphans: bool = False) -> Audit:
    """The store against the job service; `stop_orphans` first stops the jobs that nobody asked for."""
    from tuner import audit as auditor  # noqa: PLC0415 - with the service comes boto3

    with _operating_errors():
        study = store.study(name)
        spec = from_json(study.spec)
        try:
            jobs = worlds.job_service(study, spec)
            stopped = tuple(auditor.orphans(study, spec, store, jobs)) if stop_orphans else ()
            for orphan in stopped:
                jobs.stop(orphan.job)
            return replace(auditor.audit(study, spec, store, jobs), stopped=stopped)
        except JobError as error:
            raise UserError(f"the job service did not answer: {error}", Exit.REFUSED) from error


__all__ = [
    "audit",
    "check",
    "find",
    "gc",
    "launch",
    "log_chunks",
    "open_store",
    "owner_to_ask",
    "plan",
    "request_cancel",
    "request_set",
    "request_stop",
    "resume",
    "resume_all_once",
]
