"""The composition root, and the verbs that begin a study or go on with one: `launch` and `resume`.

It checks a study against its backend before anything is written, wires engine, store, proposer and service (`drive`),
and decides nothing about trials. The other verbs have modules of their own: `change` and `look`.

Rules: nothing is written before everything that can be checked was checked. `plan` asks nobody but this machine;
`prepare` asks AWS, where a study runs there, and a launch needs what it found. An amount is called "at most" only where
it cannot be passed under the reading that is printed with it: what the engine reserves, on the dearest type listed.
"""

import os
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tuner.aws import prepare as preparing
from tuner.core.clock import Clock, SystemClock
from tuner.core.commands import Command, Message
from tuner.core.errors import Exit, UserError
from tuner.core.events import EventKind
from tuner.core.prices import PriceUnknown, Rate, RateCard
from tuner.core.records import Intent, Study, StudyState
from tuner.engine.quotas import limits_to_keep
from tuner.operations.backend import (
    BACKENDS,
    Backends,
    check_code,
    default_local_dir,
    make_proposer,
    moved_to,
    upload_bundle,
)
from tuner.operations.context import operating_errors, user_name
from tuner.operations.drive import acquire, drive, outcome_of
from tuner.operations.records import LaunchPlan, Signals, StudyOutcome
from tuner.reports.records import Display
from tuner.spec import workload
from tuner.spec.records import MICROUSD
from tuner.spec.study_file import (
    SpecError,
    StudySpec,
    describe,
    load,
    refuse_missing_secrets,
    refuse_unbuilt,
    spec_of,
    to_json,
)
from tuner.store.store import Store, StudyExists

# No vowels, digits or `e`: keys stay clear of words and of numbers in disguise (12e4).
_KEY_LETTERS = "bcdfghjklmnpqrstvwxz"
_KEY_LENGTH = 6
# Billed over training time that is assumed before anything was learned: mean saving of 60 % in the Spot Advisor's
# table of 2025-06-28 for the types that SageMaker trains on.
_ASSUMED_SPOT_RATIO = 0.4
# Only the last 20 events can hold a `set`: a resting study writes almost nothing else.
_RECENT_EVENTS = 20


def plan(file: Path, overrides: Sequence[str] = ()) -> LaunchPlan:
    """Read a study file and check it against everything that this machine knows."""
    with operating_errors():
        spec = load(file, overrides)
        refuse_unbuilt(spec)
        refuse_missing_secrets(spec, os.environ)
        make_proposer(spec)
        check_code(spec)
        if spec.backend == "local" and (faults := workload.request_violations(spec)):
            raise SpecError("; ".join(faults))  # on AWS they are found with everything else that it is asked
        try:
            return _planned(spec, {})
        except PriceUnknown:
            if spec.backend == "local":
                raise
            return _unpriced(spec)


def prepare(planned: LaunchPlan, store: Store, *, clock: Clock | None = None) -> LaunchPlan:
    """Refuse a name that is taken; on AWS, fill in what the file leaves open and refuse what cannot work."""
    spec = planned.spec
    with operating_errors():
        _refuse_taken(spec.name, store)
        if spec.backend == "local":
            return planned
        found = preparing.prepare(spec, preparing.connection(spec), store, (clock or SystemClock()).now())
        return replace(_planned(found.spec, found.rates), warnings=found.warnings, quotas=found.quotas)


def _planned(spec: StudySpec, rates: Mapping[str, Rate]) -> LaunchPlan:
    """What it comes to. `rates` say where prices are from. Raises PriceUnknown."""
    training, card = spec.training, RateCard(spec.prices)
    known = {kind: rates.get(kind) or card.rate(kind, spec.region) for kind in training.instance_types}
    hours = spec.trials * training.max_run_s * training.instance_count / 3600
    ratio = _ASSUMED_SPOT_RATIO if spec.capacity.policy == "spot" else 1.0
    budget = spec.budget.microusd
    at_most = spec.trials * workload.ceiling(spec).first_job_microusd if budget is None else budget
    return LaunchPlan(
        spec=spec,
        headline=(*_headline(spec), *_amounts(spec, known, hours)),
        rows=tuple(describe(spec)),
        estimated_usd=hours * float(known[training.instance_types[0]].usd_per_hour) * ratio,
        ceiling_usd=at_most / MICROUSD,
        warnings=spec.warnings,
    )


def _unpriced(spec: StudySpec) -> LaunchPlan:
    """A study on AWS whose price is not known before AWS was asked."""
    return LaunchPlan(
        spec=spec,
        headline=tuple(_headline(spec)),
        rows=tuple(describe(spec)),
        estimated_usd=None,
        ceiling_usd=None if spec.budget.usd is None else float(spec.budget.usd),
        warnings=spec.warnings,
    )


def _headline(spec: StudySpec) -> Iterator[tuple[str, str]]:
    """What to look at before a study runs."""
    training, pruner, cloud = spec.training, spec.search.pruner, spec.sagemaker
    yield "study", f"{spec.name}, on {_where(spec)}"
    yield "trials", f"{spec.trials}, {spec.parallel} at a time"
    yield "search", spec.search.sampler.name + (f", {pruner.name}" if pruner else ", no pruner")
    yield "each on", f"{training.instance_count} x {' or '.join(training.instance_types)}, {_capacity(spec)}"
    if spec.backend == "sagemaker":
        yield "image", training.image_uri or "looked up at launch"
        yield "role", cloud.role or "looked up at launch"
        yield "checkpoints", spec.checkpoints.root or "the account's default bucket"


def _where(spec: StudySpec) -> str:
    if spec.backend == "local":
        return "this machine"
    account = f"account {spec.account} in " if spec.account else "SageMaker in "
    return account + (spec.sagemaker.region or "the region of your profile")


def _capacity(spec: StudySpec) -> str:
    return "spot" if spec.capacity.policy == "spot" else "on demand"


def _amounts(spec: StudySpec, rates: Mapping[str, Rate], hours: float) -> Iterator[tuple[str, str]]:
    """`rates` by instance type, `hours` of all trials that use their whole max_run."""
    one = len(rates) == 1
    for kind, rate in rates.items():
        source = f"({rate.basis}{f', {rate.as_of}' if rate.as_of else ''})"
        yield "rate" if one else f"rate of {kind}", f"${rate.usd_per_hour}/h {source}"
    dearest = max(rates, key=lambda kind: rates[kind].usd_per_hour)
    on = "" if one else f", all on {dearest}"
    yield (
        "if every trial used its whole max_run",
        f"${hours * float(rates[dearest].usd_per_hour):.2f} on demand{on}",
    )
    if spec.budget.usd is None:
        # faults are bounded, losses of capacity are not
        further_usd = workload.ceiling(spec).further_job_microusd / MICROUSD
        yield "a trial's further jobs add, each at most", f"${further_usd:.2f}"
    if spec.capacity.policy == "spot":
        # what AWS leaves open: whether MaxRuntime counts on after an interruption
        yield "at most, if max_run counts each run separately", f"${workload.worst_case_microusd(spec) / MICROUSD:.2f}"
    if spec.backend == "sagemaker" and spec.budget.usd is not None:
        upload = f"an upload takes at most {spec.settings.upload_allowance_s / 60:g} minutes"
        counts = "max_run counts all runs of a job together, and " if spec.capacity.policy != "on-demand" else ""
        yield "the budget holds if", f"{counts}{upload} (AWS documents neither)"


def launch(
    planned: LaunchPlan,
    store: Store,
    *,
    display: Display,
    signals: Signals,
    clock: SystemClock | None = None,
    rng: random.Random | None = None,
    backends: Backends = BACKENDS,
) -> StudyOutcome:
    """Record a new study and drive it. The plan of a study on AWS was prepared before.

    `rng` draws the study's key; tests give a seeded one.
    """
    from tuner.search.recorded import choose_earlier  # noqa: PLC0415 - imports Optuna

    clock = clock or SystemClock()
    spec = planned.spec
    with operating_errors():
        directory = default_local_dir() if spec.backend == "local" else None
        study = _new_study(spec, directory, clock.now(), rng or secrets.SystemRandom())
        _refuse_taken(spec.name, store)
        attrs = choose_earlier(store, spec, make_proposer(spec)) if spec.search.warm_start else {}
        bundle_uri = upload_bundle(spec, backends.make(spec, directory).objects())
        attrs |= limits_to_keep(planned.quotas, clock.now())
        study = replace(study, attrs=attrs, bundle_uri=bundle_uri, warnings=spec.warnings)
        try:
            study = store.create_study(study)
        except StudyExists as error:
            raise UserError(_exists(spec.name), Exit.USAGE) from error
        lease = acquire(store, study, clock)
        return drive(study, lease, store, display=display, signals=signals, clock=clock, backends=backends)


def _refuse_taken(name: str, store: Store) -> None:
    if any(other.name == name for other in store.studies()):
        raise UserError(_exists(name), Exit.USAGE)


def _exists(name: str) -> Message:
    found = f"a study named {name} exists; go on with it: "
    return Message(found, Command("resume", name), " (or choose another name)")


def _new_study(spec: StudySpec, directory: Path | None, now: datetime, rng: random.Random) -> Study:
    key = "".join(rng.choice(_KEY_LETTERS) for _ in range(_KEY_LENGTH))
    return Study(
        id=0,
        name=spec.name,
        key=f"{spec.name}-{key}",
        owner=user_name(),
        state=StudyState.RUNNING,
        version=0,
        spec=to_json(spec),
        backend=spec.backend,
        bundle_uri="",
        local_dir=None if directory is None else str(directory),
        intent=Intent.RUN,
        intent_at=now,
        created_at=now,
    )


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
    backends: Backends = BACKENDS,
) -> StudyOutcome:
    """Reconcile a study with what happened meanwhile, and carry on. May be repeated.

    `retry_failed` gives the parameters of failed trials to new ones, outside the total. `once`: one cycle, which leaves
    a study that rests as it is. A study that is being cancelled is brought to its end.
    """
    from tuner.operations.reconcile import Reconciler, Resumption, may_go_on  # noqa: PLC0415 - with it comes boto3

    clock = clock or SystemClock()
    with operating_errors():
        study = store.study(name)
        if study.state is StudyState.CANCELLED:
            raise UserError(f"study {name} was cancelled: launch a new one", Exit.USAGE)
        if once and (accept_changes or retry_failed) and not may_go_on(study, once=True):
            whole = Command("resume", name)
            raise UserError(Message("a cycle takes back no stop: ", whole, " without --once"), Exit.USAGE)
        if once and not (accept_changes or retry_failed or _expects_cycles(study, store)):
            return outcome_of(study, store, signals, clock.now())
        if may_go_on(study, once=once):
            refuse_missing_secrets(spec_of(study), os.environ)
        moved = moved_to(study)
        if moved is None:
            backends.of(study).verify()
        lease = acquire(store, study, clock, wait=not no_wait)
        try:
            resumption = Resumption(user_name(), accept_changes, retry_failed, moved, once)
            reconciler = Reconciler(store, lease, display, clock, backends)
            study = reconciler.take_up(store.study_by_id(study.id), resumption)
            if not once:  # a cycle of cron's is short
                reconciler.report_orphans(study, backends.of(study).jobs_in_turn(store, clock))
        except BaseException:
            store.release(lease)
            raise
        return drive(study, lease, store, display=display, signals=signals, clock=clock, once=once, backends=backends)


def _expects_cycles(study: Study, store: Store) -> bool:
    """Whether a cycle has something to do; what the user brought to rest waits for the user.

    A study that rests for a limit, or is finished, is taken up once for each `set` since then: the engine says whether
    that was enough, and if it comes to rest again, the record of that ends the search.
    """
    if study.state.active or study.state is StudyState.CANCELLED:
        return study.state.active
    if store.pending_requests(study.id):
        return True
    recent = store.events(study.id, after_seq=store.last_seq(study.id) - _RECENT_EVENTS)
    telling = (event for event in reversed(recent) if event.kind in (EventKind.REQUEST, EventKind.STUDY))
    last = next(telling, None)
    return study.intent is Intent.RUN and last is not None and last.details.get("verb") == "set"


def resume_all_once(
    store: Store,
    *,
    display: Display,
    signals: Signals,
    others_too: bool = False,
    clock: SystemClock | None = None,
    backends: Backends = BACKENDS,
) -> list[tuple[str, StudyOutcome]]:
    """One cycle over every study that an engine is expected for; a study held by another engine is passed over.

    Studies of other users are passed over too, unless `others_too` is set, because nobody can be asked.
    """
    outcomes = []
    for study in store.studies():
        if signals.stop_requested or not _expects_cycles(study, store):
            continue
        if study.owner != user_name() and not others_too:
            passed_over = f"belongs to {study.owner}: passed over (--force takes it along)"
            outcomes.append((study.name, StudyOutcome(study_state=study.state, exit_code=0, refused=passed_over)))
            continue
        try:
            outcome = resume(
                study.name,
                store,
                display=display,
                signals=signals,
                once=True,
                no_wait=True,
                clock=clock,
                backends=backends,
            )
        except UserError as error:
            outcome = StudyOutcome(study_state=study.state, exit_code=error.exit_code, refused=error.message)
        outcomes.append((study.name, outcome))
    return outcomes
