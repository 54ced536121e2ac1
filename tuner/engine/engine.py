"""The loop: observe, decide, commit, act, wait.

The engine is *given* a clock, a store, a job service, a reader of progress and a proposer, and does not know which
backend they belong to. It holds the study's lease and is its only writer.

Rules: level-triggered, since every observation carries the whole history and lost commands are derived again from the
rows. Intent before money: an attempt's row is committed before its job is created, a stop before it is sent. Within a
tick, memory runs ahead of the database until the commit. If a commit fails for any reason, memory and the sampler's
view are loaded again. A job is never marked failed because this process died. Work is proportional to what is in
flight and what changed, never to what is recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Protocol

from tuner.core.calls import UNMETERED, Calls
from tuner.core.clock import Clock
from tuner.core.commands import from_stored
from tuner.core.events import EventKind
from tuner.core.hints import Hints
from tuner.core.jobs import JobService
from tuner.core.policy import placement, resting
from tuner.core.policy.budget import DISCOUNT_SHOWN_S
from tuner.core.records import (
    HALTED,
    RETRY_OF,
    AttemptEnd,
    AttemptState,
    Event,
    Lease,
    Pool,
    PoolTotals,
    Study,
    StudyState,
    Trial,
)
from tuner.core.states import TrialEvent
from tuner.engine import requests
from tuner.engine.alarms import REJECTED_ALIKE
from tuner.engine.dispatch import Dispatcher, submit_due
from tuner.engine.ending import report_end
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.engine.observe import Observer
from tuner.engine.polling import stale_s
from tuner.engine.quotas import kept_limits
from tuner.engine.unit_of_work import UnitOfWork
from tuner.search.proposer import Proposer
from tuner.search.recorded import earlier_rows, view_rows
from tuner.spec import workload
from tuner.spec.study_file import StudySpec, spec_of
from tuner.storage.progress import Progress
from tuner.store.store import Store, StoreConflict, StoreUnreachable

LEASE_S = 60.0
# A create or stop is not sent when less than this is left of the lease: another engine might already be at work.
_LEASE_MARGIN_S = 5.0
# The number of recent studies whose experience with pools is used.
_STUDIES_RECALLED = 50


class EngineListener(Protocol):
    """Is informed of what an engine does."""

    def committed(self, events: tuple[Event, ...]) -> None:
        """These events are in the store now."""
        ...

    def ticked(self, study: Study, live: LiveStudy) -> None:
        """A tick is over; the memory is to be read only."""
        ...

    def store_away(self, at: datetime, error: StoreUnreachable | None) -> None:
        """The store does not answer, and the engine waits for it; None: it is there again."""
        ...


class NoListener:
    """A listener that ignores everything."""

    def committed(self, events: tuple[Event, ...]) -> None:
        """Ignored."""

    def ticked(self, study: Study, live: LiveStudy) -> None:
        """Ignored."""

    def store_away(self, at: datetime, error: StoreUnreachable | None) -> None:
        """Ignored."""


def _live_on(_point: str) -> None:
    """The crash point of production."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What an engine is given. `progress` makes a new reader; `crash_point` is where tests die.

    `calls` limits how many calls of `jobs` may be made now, `hints` announces jobs that changed;
    `sync_delay_s` is how late files of the checkpoint folder were seen to reach the store.
    """

    store: Store
    clock: Clock
    jobs: JobService
    progress: Callable[[], Progress]
    proposer: Callable[[StudySpec], Proposer]
    listener: EngineListener
    crash_point: Callable[[str], None] = _live_on
    calls: Calls = UNMETERED
    hints: Hints | None = None
    sync_delay_s: float = 0.0


class Engine:
    """Drives one study for as long as it holds the lease."""

    def __init__(self, study: Study, lease: Lease, services: Services) -> None:
        self.study = study
        self.lease = lease
        self._services = services
        left_s = (lease.expires_at - services.clock.now()).total_seconds()
        self._lease_until_s = services.clock.elapsed_s() + left_s  # as `elapsed_s` counts
        self._stop_requested: Callable[[], bool] = lambda: False
        self._load()

    # --- memory

    def _load(self) -> None:
        """Load everything from the store: at the start, and after a commit that failed."""
        store = self._services.store
        self.study = study = store.study_by_id(self.study.id)
        spec = spec_of(study)
        summary = store.summary(study.id)
        last_seq = store.last_seq(study.id)
        last = store.events(study.id, after_seq=last_seq - 1)
        self._progress = self._services.progress()
        self.live = LiveStudy(
            spec=spec,
            policy=workload.policy(spec, study),
            sync_delay_s=self._services.sync_delay_s,
            proposer=self._services.proposer(spec),
            last_seq=last_seq,
            last_recorded_at=last[-1].recorded_at if last else None,
            trial_count=sum(summary.trials.values()),
            spent_microusd=summary.spend_microusd,
            spot_ratio=store.largest_spot_ratio(study.id, trained_s=DISCOUNT_SHOWN_S),
            trials={
                record.number: LiveTrial(record, list(attempts), list(runs))
                for record, attempts, runs in store.live(study.id)
            },
        )
        self.live.limits = kept_limits(study)
        self.live.totals = self._pool_totals(study)
        self.live.recall_losses()
        self.live.rejections = self._rejections()
        self.live.halted = from_stored(study.attrs[HALTED]) if HALTED in study.attrs else None
        self.live.refresh_capacity(self._services.clock.now())
        self._load_view()

    def _pool_totals(self, study: Study) -> dict[Pool, PoolTotals]:
        """Totals of ended attempts by pool, including those of recent studies in the same region.

        A local study has its own market, so other studies are not used for it.
        """
        store = self._services.store
        known = [study] if study.backend == "local" else store.studies()[-_STUDIES_RECALLED:]
        region = self.live.spec.region
        similar = [each.id for each in known if each.backend == study.backend and spec_of(each).region == region]
        return store.pool_totals({*similar, study.id}, ended=True)

    def _rejections(self) -> list[str]:
        """Why the last creates were rejected, if they were. A single cycle has too few of its own."""
        asked = self._services.store.asked_last(self.study.id, limit=REJECTED_ALIKE)
        last = takewhile(lambda each: each.end is AttemptEnd.REJECTED, asked)
        return [(each.reason or "").replace(each.job_name, "JOB") for each in last][::-1]

    def _load_view(self) -> None:
        """Build the sampler's study again from our rows."""
        for point in self._services.store.points(self.study.id):
            if point.trial in self.live.trials:
                trial = self.live.trials[point.trial]
                trial.latest[point.name, point.step] = point
                trial.note_report(point.at)
        rows = view_rows(self._services.store, self.study, self.live.spec)
        self.live.retried = sum(RETRY_OF in row.attrs for row in rows)
        self.live.proposer.rebuild(rows, self.study.attrs, earlier_rows(self._services.store, self.study))

    # --- the loop

    def run(self, stop_requested: Callable[[], bool]) -> StudyState:
        """Tick until the study ends or rests, or until asked to leave (jobs go on). Raises LeaseLost.

        Raises StoreUnreachable when asked to leave while the store is away.
        """
        self._stop_requested = stop_requested
        while not stop_requested():
            if not self.tick().active:
                break
            now = self._services.clock.now()
            poll = timedelta(seconds=self.live.policy.poll_s)
            self._services.clock.wait(now + poll, due=self._next_due(now))
        return self.study.state

    def cycle(self, stop_requested: Callable[[], bool]) -> StudyState:
        """One tick, and more until everything under the prefixes was read; returns the study's state.

        The next cycle's reader starts from the beginning, so it would never reach the rest. Raises as `run`.
        """
        self._stop_requested = stop_requested
        self.tick()
        while self.live.reads_on and not stop_requested():
            self.tick()
        return self.study.state

    def tick(self) -> StudyState:
        """Observe once and do what follows; returns the study's state."""
        try:
            try:
                self._tick()
            except StoreConflict:
                # another process wrote: the fence decides whether we may go on, and then only from the rows
                self._renew()
                self._load()
        except StoreUnreachable as error:
            self._wait_for_store(error)
        self._services.listener.ticked(self.study, self.live)
        return self.study.state

    def _renew(self) -> None:
        # another engine could take a lease that runs out between two polls, while this engine lives
        period_s = LEASE_S + 2 * self.live.policy.poll_s
        clock = self._services.clock
        until_s = clock.elapsed_s() + period_s
        self.lease = self._services.store.renew(self.lease, now=clock.now(), period_s=period_s)
        self._lease_until_s = until_s

    def _wait_for_store(self, error: StoreUnreachable) -> None:
        """Wait until the database is back, and load everything again; jobs go on meanwhile."""
        clock, listener = self._services.clock, self._services.listener
        listener.store_away(clock.now(), error)
        while not self._stop_requested():
            clock.wait(clock.now() + timedelta(seconds=self.live.policy.poll_s))
            try:
                self._renew()
                self._load()
            except StoreUnreachable as again:
                error = again
                continue
            listener.store_away(clock.now(), None)
            return
        raise error

    def _tick(self) -> None:
        now = self._services.clock.now()
        self._renew()
        unit = self._unit(now)
        self._apply_requests(unit)
        given = self._services
        Observer(self.live, given.jobs, self._progress, unit, calls=given.calls, hints=given.hints).observe()
        self._commit(unit, "observed")
        unit = self._unit(now)
        submit_due(self.live, unit)
        self._commit(unit, "intended")
        if not self._lease_is_good():
            # reading a thousand prefixes, or waiting for a storage, took that long. A stop must not wait for a faster
            # tick, which may never come
            self._renew()
        unit = self._unit(now)
        dispatcher = Dispatcher(
            self.live,
            self._services.jobs,
            unit,
            may_send=self._lease_is_good,
            crash_point=self._services.crash_point,
            calls=self._services.calls,
        )
        dispatcher.act()
        self._settle(unit)
        self._commit(unit, "acted")

    def _lease_is_good(self) -> bool:
        # check both clocks: after the wall clock was set back, a lease that another engine took looks valid
        left_s = (self.lease.expires_at - self._services.clock.now()).total_seconds()
        return min(left_s, self._lease_until_s - self._services.clock.elapsed_s()) > _LEASE_MARGIN_S

    def _unit(self, now: datetime) -> UnitOfWork:
        return UnitOfWork(self.study, last_seq=self.live.last_seq, now=now, recorded_after=self.live.last_recorded_at)

    def _commit(self, unit: UnitOfWork, point: str) -> None:
        self._services.crash_point(f"before {point}")
        change = unit.change()
        if change is not None:
            self._services.store.commit(self.lease, change, now=unit.now)
            self.study = unit.study
            self.live.last_seq += len(change.events)
            self.live.last_recorded_at = unit.recorded_at
            for record in (*change.new_trials, *(after for _, after in change.trials)):
                if record.state.terminal:
                    self._forget(record)
            self._services.listener.committed(change.events)
        self._services.crash_point(f"after {point}")

    # --- requests of the user

    def _apply_requests(self, unit: UnitOfWork) -> None:
        live = self.live
        for request in self._services.store.pending_requests(self.study.id):
            bound_microusd = live.spent_microusd + live.reserved_in_flight_microusd
            study = requests.apply(unit, request, bound_microusd=bound_microusd)
            live.spec = spec_of(study)
            live.policy = workload.policy(live.spec, study)

    def _forget(self, record: Trial) -> None:
        """Drop a trial that has ended: memory follows what is in flight."""
        for attempt in self.live.trials.pop(record.number).attempts:
            self.live.polls.forget(attempt.job_name)
        self._progress.forget(record.prefix)

    # --- the study itself

    def _settle(self, unit: UnitOfWork) -> None:
        """Write what the study is doing, from its trials and what the user wants."""
        state = self._state(unit)
        if state is StudyState.CANCELLED:
            for trial in self.live.trials.values():
                unit.move_trial(trial, TrialEvent.CANCEL, reason="cancelled")
                report_end(self.live, unit, trial)
        if state is not unit.study.state:
            unit.event(EventKind.STUDY, before=unit.study.state, after=state)
            unit.set_study(replace(unit.study, state=state))

    def _state(self, unit: UnitOfWork) -> StudyState:
        live = self.live
        busy = live.in_flight > 0 or live.concluding
        if not busy and live.snapshot.now != unit.now:
            live.refresh_capacity(unit.now)
        waiting, wants_more = live.waiting(), live.wants_more(unit.study)
        view = resting.StudyView(
            intent=unit.study.intent,
            busy=busy,
            unfinished=len(live.trials),
            waiting=len(waiting),
            wants_more=wants_more,
            past_deadline=live.past_deadline(unit.now),
            fits=lambda: any(map(live.fits_budget, waiting)) or (wants_more and live.fits_budget(None)),
        )
        return resting.state(view)

    def _next_due(self, now: datetime) -> datetime | None:
        """When the engine itself next has something to do; virtual time must not jump over it."""
        live = self.live
        moments = [live.policy.deadline_at]
        if live.concluding or live.polls.behind or live.policy.stall_after_s is not None:
            moments.append(now)
        unseen = timedelta(seconds=stale_s(live.in_flight, live.policy.poll_s) + live.policy.poll_s)
        moments += [limit.believed_until(now) for limit in live.limits.values()]
        for trial in live.trials.values():
            attempt = trial.attempt
            moments.append(trial.record.due_at)
            if attempt is not None:
                moments += [
                    attempt.stop_by,
                    attempt.next_try_at,
                    trial.runs_out_at,
                    placement.look_again_at(trial.waits_since, live.policy, now),
                ]
                moments.append(live.limit_reached_at(trial))
                seen_at = attempt.observed_at or attempt.created_at
                moments.append(now if attempt.state is AttemptState.STOPPING else seen_at + unseen)
        return min((moment for moment in moments if moment is not None and moment >= now), default=None)
