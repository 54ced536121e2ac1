"""What `resume` settles before an engine goes on: the study file, the code, failed trials, jobs that nobody asked for.

It exists so that a study that rested, for a minute or a month, goes on as it was recorded. The user who resumes it
learns what differs, and which further jobs cost money.

Rules:
- It runs under the lease. It refuses a study file that no longer fits before it writes anything, and reports each
  difference first, one line each.
- Trials that exist keep the settings that shaped their results. What `tuner set` changed stays, unless the file changed
  the same key.
- The new trial of a failed one is recorded first, then its checkpoints are copied, then it may get a job. The next
  `resume` repeats a copy that was cut off. A finished copy is an event and is not repeated.
- The lease is renewed before each object. After a lost lease the copy ends, because jobs of the next engine may already
  write to the prefix.
- Open requests are applied first. A study that is being cancelled never goes on: `resume` brings it to its end.
- A cycle (`once`) changes nothing of what the user last asked for. It goes on with what runs, and ends what is being
  stopped.
- A study that goes on is recorded as running before any of its jobs can be made. If this process dies, the next cycle
  finds it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from tuner.aws import prepare
from tuner.aws.connections import AwsError
from tuner.core.clock import Clock
from tuner.core.commands import Command, Message
from tuner.core.errors import Exit, UserError
from tuner.core.events import EventKind
from tuner.core.jobs import JobError, JobService
from tuner.core.prices import usd
from tuner.core.records import (
    BEGUN_WITH,
    HALTED,
    RETRY_OF,
    SET_LIVE,
    Intent,
    Json,
    Lease,
    Study,
    StudyState,
    Trial,
    TrialState,
)
from tuner.engine import requests
from tuner.engine.live_trial import LiveTrial
from tuner.engine.quotas import limits_to_keep
from tuner.engine.unit_of_work import UnitOfWork
from tuner.operations.backend import BACKENDS, Backends, make_bundle, make_proposer, upload_bundle
from tuner.reports import audit
from tuner.reports.events import narrate
from tuner.reports.records import Display, EventLine, Level
from tuner.spec import workload
from tuner.spec.document import setting_text
from tuner.spec.study_file import (
    SpecChange,
    StudySpec,
    apply_set,
    as_begun,
    changes,
    live_settings,
    load,
    refuse_unbuilt,
    spec_of,
    to_json,
)
from tuner.storage.bundle import BundleRefused, has_same_code
from tuner.storage.checkpoints import copy_own_files
from tuner.storage.objects import ObjectsError
from tuner.store.store import LONG_STEP_S, Store

_KINDS = {
    "harmless": "may differ, and is taken over by --accept-changes or `set`",
    "needs_accept": "needs --accept-changes, and is for all jobs from then on",
    "never": "can never change: undo it, or launch a new study with search.warm_start",
}


@dataclass(frozen=True, slots=True)
class Resumption:
    """Who resumes a study, what they accept, and where its state directory is if it was moved.

    `once`: it is a cycle, which changes nothing of what the user last asked for.
    """

    who: str
    accept_changes: bool = False
    retry_failed: bool = False
    moved: Path | None = None
    once: bool = False


def may_go_on(study: Study, *, once: bool) -> bool:
    """Whether jobs may be started; otherwise the study is only brought to the rest or the end that was asked for."""
    return study.intent is Intent.RUN or (study.intent is not Intent.CANCEL and not once)


class Reconciler:
    """Settles one study, under its lease."""

    def __init__(
        self, store: Store, lease: Lease, display: Display, clock: Clock, backends: Backends = BACKENDS
    ) -> None:
        self._store = store
        self._lease = lease
        self._display = display
        self._clock = clock
        self._backends = backends
        self._now = clock.now()

    def take_up(self, study: Study, resumption: Resumption) -> Study:
        """Record that the study goes on, or to its end; returns it as it is then.

        Raises UserError, with nothing written.
        """
        unit = UnitOfWork.following(self._store, study, self._clock.now())
        if resumption.moved is not None:
            self._move(unit, resumption.moved)
        self._apply_requests(unit)
        goes_on = may_go_on(unit.study, once=resumption.once)
        if goes_on:
            self._compare_file(unit, accept_changes=resumption.accept_changes)
        else:
            self._report_end(unit.study)
        unit.event(EventKind.RESUME, who=resumption.who, once=resumption.once)
        if goes_on:
            _run(unit)
            if resumption.retry_failed:
                self._retry_failed(unit)
        self._commit(unit)
        if goes_on:
            self._copy_checkpoints(unit.study)
        return unit.study

    def _apply_requests(self, unit: UnitOfWork) -> None:
        """Apply the open requests first: a stop that no engine has read must not come after this."""
        summary = self._store.summary(unit.study.id)
        for request in self._store.pending_requests(unit.study.id):
            requests.apply(unit, request, bound_microusd=summary.spend_microusd + summary.reserved_microusd)

    def _report_end(self, study: Study) -> None:
        if study.intent is Intent.CANCEL:
            self._report("warn", f"study {study.name} is being cancelled: this ends it, it does not go on")
        else:
            stopped = f"study {study.name} is being stopped; to go on with it: "
            self._report("info", Message(stopped, Command("resume", study.name)))

    def report_orphans(self, study: Study, jobs: JobService) -> None:
        """Say which jobs cost money that no attempt asked for; a service that does not answer holds nobody up."""
        spec = spec_of(study)
        try:
            found = audit.orphans(study, spec, self._store, jobs)
        except JobError as error:
            self._report("warn", f"jobs that nobody asked for were not looked for: {error}")
            return
        for orphan in found:
            self._report("error", Message(f"job {orphan.job}: ", orphan.text))

    def _commit(self, unit: UnitOfWork) -> None:
        change = unit.change()
        assert change is not None, "every unit here has an event"
        self._store.commit(self._lease, change, now=unit.now)
        for line in narrate(change.events):
            self._display.event(line)

    def _renew(self) -> None:
        """Raises LeaseLost."""
        self._store.renew(self._lease, now=self._clock.now(), period_s=LONG_STEP_S)

    def _report(self, level: Level, text: str | Message) -> None:
        self._display.event(EventLine(at=self._now, level=level, text=text))

    def _move(self, unit: UnitOfWork, to: Path) -> None:
        unit.event(EventKind.MOVED, before=unit.study.local_dir, after=str(to))
        unit.set_study(replace(unit.study, local_dir=str(to)))

    # --- the study file and the code

    def _compare_file(self, unit: UnitOfWork, *, accept_changes: bool) -> None:
        """Refuse a study file that no longer fits what is recorded; the differences are told before."""
        recorded = spec_of(unit.study)
        if recorded.file is None or not recorded.file.is_file():
            self._report("info", f"the study file {recorded.file} is gone: the recorded one is used")
            return
        current = load(recorded.file, recorded.overrides)
        if recorded.backend == current.backend == "sagemaker":
            current = prepare.carried(current, recorded)
        current = self._as_set(unit.study, recorded, current)
        found = changes(recorded, current)
        for change in found:
            self._report("warn", f"{recorded.file.name}: {change} ({_kind_text(change)})")
        _refuse(recorded, found, accept_changes=accept_changes)
        if accept_changes:
            self._accept(unit, current, found)
        else:
            self._compare_code(unit.study, current)

    def _as_set(self, study: Study, recorded: StudySpec, current: StudySpec) -> StudySpec:
        """The file as it is now, with what `tuner set` changed since the file said so."""
        now, in_file = live_settings(recorded), live_settings(current)
        stays = [
            key
            for key, said in cast("dict[str, Json]", study.attrs.get(SET_LIVE, {})).items()
            if in_file[key] == said != now[key]
        ]
        for change in changes(recorded, current):
            if change.key in stays:
                self._report(
                    "info",
                    f"{change.key} was set to {setting_text(change.old)}, and stays so: the file's "
                    f"{setting_text(change.new)} is older",
                )
        return apply_set(current, [f"{key}={json.dumps(now[key])}" for key in stays]) if stays else current

    def _check_budget(self, study: Study, current: StudySpec) -> None:
        """Raises UserError for one that could not be kept any more, as `tuner set` does."""
        summary, limit = self._store.summary(study.id), current.budget.microusd
        bound = summary.spend_microusd + summary.reserved_microusd
        if limit is not None and limit < bound and limit != spec_of(study).budget.microusd:
            raise UserError(
                f"budget.usd: {usd(limit)} in {current.file} is below the {usd(bound)} that study {study.name} has "
                "spent and reserved; give at least that, or stop the study first",
                Exit.USAGE,
            )

    def _keep_what_began(self, unit: UnitOfWork, current: StudySpec) -> None:
        """Trials that exist keep what shapes their results: half of it under other settings would be of no kind."""
        former = unit.study.spec
        if to_json(as_begun(current, former)) == to_json(current):
            return
        begun = [each for each in self._store.live(unit.study.id) if BEGUN_WITH not in each[0].attrs]
        for trial, attempts, runs in begun:
            attrs = {**trial.attrs, BEGUN_WITH: former}
            unit.set_trial(LiveTrial(trial, list(attempts), list(runs)), replace(trial, attrs=attrs))
        if begun:
            numbers = ", ".join(str(trial.number) for trial, _, _ in begun)
            self._report("info", f"unfinished trials keep the settings they began with: {numbers}")

    def _accept(self, unit: UnitOfWork, current: StudySpec, found: Sequence[SpecChange]) -> None:
        refuse_unbuilt(current)
        self._check_budget(unit.study, current)
        make_proposer(current)
        backend = self._backends.of(unit.study)
        ready = backend.prepared(current, self._store, self._now)
        current = ready.spec
        for line in ready.warnings:
            self._report("warn", line)
        unit.remember(limits_to_keep(ready.quotas, self._now))
        bundle_uri = upload_bundle(current, backend.objects())
        self._keep_what_began(unit, current)
        in_file = cast("dict[str, Json]", unit.study.attrs.get(SET_LIVE, {}))
        changed = {change.key for change in found}
        if in_file:
            unit.remember({SET_LIVE: {key: said for key, said in in_file.items() if key not in changed}})
        unit.event(EventKind.CHANGES_ACCEPTED, changes=[str(change) for change in found], bundle_uri=bundle_uri)
        unit.set_study(replace(unit.study, spec=to_json(current), bundle_uri=bundle_uri))

    def _compare_code(self, study: Study, current: StudySpec) -> None:
        """An edited source tree is no reason to stop: jobs run the bundle, never the tree.

        A newer tuner packs other modules of its own. That alone is no edit of the user's.
        """
        if current.training.algorithm is not None:
            return
        try:
            bundle = make_bundle(current)
        except BundleRefused as error:
            self._report("warn", f"the code cannot be packed any more: {error}; the recorded bundle is used")
            return
        if f"/{bundle.digest}/" in study.bundle_uri:
            return
        try:
            if has_same_code(bundle, self._backends.of(study).objects(), study.bundle_uri):
                return
        except (ObjectsError, AwsError) as error:
            self._report("info", f"the recorded bundle cannot be compared with the source tree: {error}; it is used")
            return
        edited = "the source tree has changed since: the recorded bundle is used; for new trials: "
        self._report("info", Message(edited, Command("resume", study.name, "--accept-changes")))

    # --- failed trials

    def _retry_failed(self, unit: UnitOfWork) -> None:
        trials = self._store.trials(unit.study.id)
        retried = {trial.retry_of for trial in trials}
        failed = [each for each in trials if each.state is TrialState.FAILED and each.number not in retried]
        spec = spec_of(unit.study)
        for number, old in enumerate(failed, start=len(trials)):
            trial = LiveTrial(_again(old, number, unit, spec))
            unit.add_trial(trial)
            unit.event(EventKind.RETRY, trial=trial, of=old.number)
        if not failed:
            self._report("info", "no failed trial is left to be retried")

    def _copy_checkpoints(self, study: Study) -> None:
        """For trials that repeat another and have no job yet; done again where a copy was cut off. Raises LeaseLost."""
        waiting = [trial for trial, attempts, _ in self._store.live(study.id) if trial.retry_of is not None]
        waiting = [trial for trial in waiting if trial.state is TrialState.PROPOSED and not self._copied(study, trial)]
        if not waiting:
            return
        objects = self._backends.of(study).objects()
        sources = self._store.trials(study.id, numbers=[number for t in waiting if (number := t.retry_of) is not None])
        prefixes = {trial.number: trial.prefix for trial in sources}
        for trial in waiting:
            assert trial.retry_of is not None, "chosen by it"
            files = copy_own_files(objects, prefixes[trial.retry_of], trial.prefix, renew=self._renew)
            unit = UnitOfWork.following(self._store, study, self._clock.now())
            unit.event(EventKind.COPIED, trial=LiveTrial(trial), of=trial.retry_of, files=files)
            self._commit(unit)

    def _copied(self, study: Study, trial: Trial) -> bool:
        return any(event.kind == EventKind.COPIED for event in self._store.events(study.id, trial=trial.number))


def _run(unit: UnitOfWork) -> None:
    study = replace(unit.study, attrs={key: value for key, value in unit.study.attrs.items() if key != HALTED})
    if study.intent is not Intent.RUN:
        study = replace(study, intent=Intent.RUN, intent_at=unit.now)
    if not study.state.active:
        unit.event(EventKind.STUDY, before=study.state, after=StudyState.RUNNING)
        study = replace(study, state=StudyState.RUNNING)
    unit.set_study(study)


def _again(old: Trial, number: int, unit: UnitOfWork, spec: StudySpec) -> Trial:
    """The parameters of a failed trial as a new one, with the code that new trials get."""
    return Trial(
        number=number,
        state=TrialState.PROPOSED,
        version=0,
        params=old.params,
        distributions=old.distributions,
        attrs={RETRY_OF: old.number},
        prefix=workload.prefix(spec, unit.study.key, number),
        bundle_uri=unit.study.bundle_uri,
        asked_seq=0,  # filled in with its event
        created_at=unit.now,
    )


def _kind_text(change: SpecChange) -> str:
    if change.kind == "needs_accept" and change.for_new_trials:
        return "needs --accept-changes, and is for new trials only"
    return _KINDS[change.kind]


def _refuse(recorded: StudySpec, found: Sequence[SpecChange], *, accept_changes: bool) -> None:
    never = list(_keys(found, "never"))
    if never:
        raise UserError(
            f"{recorded.file} no longer fits study {recorded.name}: {', '.join(never)} changed; "
            "undo this, or launch it as a new study under another name",
            Exit.USAGE,
        )
    needs = list(_keys(found, "needs_accept"))
    if needs and not accept_changes:
        changed = f"{recorded.file} has changed: {', '.join(needs)}; undo this, or accept it: "
        raise UserError(Message(changed, Command("resume", recorded.name, "--accept-changes")), Exit.USAGE)


def _keys(found: Sequence[SpecChange], kind: str) -> Iterator[str]:
    return (change.key for change in found if change.kind == kind)
