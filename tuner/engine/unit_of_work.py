"""The unit of work: changes that are committed together.

Rules: it remembers each row as it was in the database and gives everything to the store as one `Change`. Memory runs
ahead of the database between a change and its commit. If a commit fails, the memory is dropped and loaded again.
Transitions go through the tables of `states`, and every transition is an event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Self

from tuner.core.calls import OutOfCalls
from tuner.core.events import EventDraft, EventKind
from tuner.core.records import (
    Attempt,
    AttemptEnd,
    AttemptState,
    Change,
    Event,
    Json,
    Point,
    Request,
    Run,
    Study,
    Trial,
    TrialState,
)
from tuner.core.states import AttemptEvent, TrialEvent, next_attempt_state, next_trial_state
from tuner.engine.live_trial import LiveTrial
from tuner.store.store import Store


class UnitOfWork:
    """Changes that are committed together."""

    def __init__(self, study: Study, *, last_seq: int, now: datetime, recorded_after: datetime | None = None) -> None:
        self.now = now
        # after a clock was set back, events must not run back in time; decisions still use `now`
        self.recorded_at = max(now, recorded_after or now)
        self.study = study
        self._study_before = study
        self._seq = last_seq
        self._trials: dict[int, tuple[Trial | None, LiveTrial]] = {}
        self._attempts: dict[tuple[int, int], tuple[Attempt | None, LiveTrial]] = {}
        self._runs: dict[tuple[int, int, int], Run] = {}
        self._points: dict[tuple[int, int, str], Point] = {}
        self._events: list[Event] = []
        self._requests: list[Request] = []

    @classmethod
    def following(cls, store: Store, study: Study, now: datetime) -> Self:
        """For a holder of the lease without an engine: the last event is read from the store."""
        last_seq = store.last_seq(study.id)
        last = store.events(study.id, after_seq=last_seq - 1)
        return cls(study, last_seq=last_seq, now=now, recorded_after=last[-1].recorded_at if last else None)

    # --- what happened

    def event(
        self, kind: EventKind, *, trial: LiveTrial | None = None, attempt: int | None = None, **details: Json
    ) -> int:
        """Record that something happened now; returns its number."""
        return self._record(
            EventDraft(kind=kind, happened_at=self.now, details=details),
            None if trial is None else trial.record.number,
            attempt,
        )

    def trouble(self, error: Exception, trial: LiveTrial | None = None) -> None:
        """Record a failed call that the next tick repeats. A call that was not made did not fail."""
        if isinstance(error, OutOfCalls):
            return
        self.event(EventKind.TROUBLE, trial=trial, error=type(error).__name__, message=str(error))

    def drafted(self, trial: LiveTrial, attempt: int, drafts: Sequence[EventDraft]) -> None:
        """Record events that were drafted for an attempt."""
        for draft in drafts:
            self._record(draft, trial.record.number, attempt)

    def _record(self, draft: EventDraft, trial: int | None, attempt: int | None) -> int:
        self._seq += 1
        event = Event(
            seq=self._seq,
            kind=draft.kind,
            recorded_at=self.recorded_at,
            happened_at=draft.happened_at,
            trial=trial,
            attempt=attempt,
            before=draft.before,
            after=draft.after,
            details=draft.details,
        )
        self._events.append(event)
        return self._seq

    # --- trials

    def add_trial(self, trial: LiveTrial) -> None:
        """A proposal becomes a row. Its `asked_seq` is filled in here."""
        seq = self._record(
            EventDraft(kind=EventKind.TRIAL_PROPOSE, happened_at=self.now, after=TrialState.PROPOSED),
            trial.record.number,
            None,
        )
        trial.record = replace(trial.record, asked_seq=seq)
        self._trials[trial.record.number] = (None, trial)

    def set_trial(self, trial: LiveTrial, record: Trial) -> None:
        """Change what is known of a trial, but not its state."""
        assert record.state is trial.record.state, f"trial {record.number}: states change by events"
        self._touch_trial(trial)
        trial.record = record

    def move_trial(
        self,
        trial: LiveTrial,
        event: TrialEvent,
        *,
        reason: str | None = None,
        due_at: datetime | None = None,
        values: tuple[float, ...] | None = None,
    ) -> int:
        """Take a trial through its table; returns the number of the event."""
        before = trial.record
        after = next_trial_state(before.state, event)
        seq = self._record(
            EventDraft(
                kind=EventKind(f"trial.{event}"),
                happened_at=self.now,
                before=before.state,
                after=after,
                details=_said(reason, values),
            ),
            before.number,
            before.attempts or None,
        )
        self._touch_trial(trial)
        trial.record = replace(
            before,
            state=after,
            reason=reason,
            due_at=due_at,
            values=values,
            finished_at=self.now if after.terminal else None,
            told_seq=seq if after.terminal else None,
        )
        return seq

    def _touch_trial(self, trial: LiveTrial) -> None:
        self._trials.setdefault(trial.record.number, (trial.record, trial))

    # --- attempts, runs, points

    def add_attempt(self, trial: LiveTrial, attempt: Attempt) -> None:
        """The intent to submit."""
        trial.attempts.append(attempt)
        self._attempts[attempt.trial, attempt.number] = (None, trial)
        draft = EventDraft(
            kind=EventKind.ATTEMPT_SUBMIT,
            happened_at=self.now,
            after=AttemptState.SUBMITTING,
            details={"job": attempt.job_name, "instance": attempt.instance_type, "spot": attempt.spot},
        )
        self._record(draft, attempt.trial, attempt.number)
        self.set_trial(trial, replace(trial.record, attempts=attempt.number))

    def set_attempt(self, trial: LiveTrial, attempt: Attempt) -> None:
        """Replace the last attempt of a trial; state changes come with events of their own."""
        current = trial.attempts[-1]
        assert current.number == attempt.number, f"{attempt.job_name} is not the last attempt"
        self._attempts.setdefault((attempt.trial, attempt.number), (current, trial))
        trial.attempts[-1] = attempt

    def move_attempt(self, trial: LiveTrial, event: AttemptEvent, **details: Json) -> None:
        """Take the last attempt through its table."""
        attempt = trial.attempts[-1]
        after = next_attempt_state(attempt.state, event)
        draft = EventDraft(
            kind=EventKind(f"attempt.{event}"),
            happened_at=self.now,
            before=attempt.state,
            after=after,
            details=details,
        )
        self._record(draft, attempt.trial, attempt.number)
        self.set_attempt(trial, replace(attempt, state=after))

    def end_unsubmitted(self, trial: LiveTrial, end: AttemptEnd, reason: str) -> None:
        """End an attempt for which no job of ours exists: it cost nothing."""
        self.move_attempt(trial, AttemptEvent.END, end=end, reason=reason)
        self.set_attempt(
            trial,
            replace(
                trial.attempts[-1],
                end=end,
                reason=reason,
                ended_at=self.now,
                spend_microusd=0,
                on_demand_microusd=0,
            ),
        )

    def set_runs(self, trial: LiveTrial, runs: Sequence[Run]) -> None:
        """Replace a trial's runs; only those that changed are written."""
        known = {(run.attempt, run.number): run for run in trial.runs}
        for run in runs:
            if known.get((run.attempt, run.number)) != run:
                self._runs[run.trial, run.attempt, run.number] = run
        trial.runs = list(runs)

    def add_points(self, points: Sequence[Point]) -> None:
        self._points.update({(point.trial, point.step, point.name): point for point in points})

    # --- study

    def set_study(self, study: Study) -> None:
        self.study = study

    def remember(self, attrs: Mapping[str, Json]) -> None:
        """Store attributes of the study."""
        if attrs:
            self.study = replace(self.study, attrs={**self.study.attrs, **attrs})

    def applied(self, request: Request) -> None:
        self._requests.append(request)

    # --- all of it

    def change(self) -> Change | None:
        """All changes, each version raised by one; None if nothing changed."""
        trials = [(before, trial) for before, trial in self._trials.values()]
        for before, trial in trials:
            trial.record = replace(trial.record, version=before.version + 1 if before else 0)
        attempts = []
        for (_, number), (old, trial) in self._attempts.items():
            new = replace(trial.attempts[number - 1], version=old.version + 1 if old else 0)
            trial.attempts[number - 1] = new
            attempts.append((old, new))
        study = None
        if self.study != self._study_before:
            self.study = replace(self.study, version=self._study_before.version + 1)
            study = (self._study_before, self.study)
        change = Change(
            study=study,
            new_trials=tuple(trial.record for before, trial in trials if before is None),
            trials=tuple((before, trial.record) for before, trial in trials if before is not None),
            new_attempts=tuple(new for old, new in attempts if old is None),
            attempts=tuple((old, new) for old, new in attempts if old is not None),
            runs=tuple(self._runs.values()),
            points=tuple(self._points.values()),
            events=tuple(self._events),
            requests=tuple(self._requests),
        )
        return None if change == Change() else change


def _said(reason: str | None, values: tuple[float, ...] | None) -> dict[str, Json]:
    """The details of a trial's transition: enough to detect a row that was changed by hand."""
    details: dict[str, Json] = {} if reason is None else {"reason": reason}
    return details if values is None else {**details, "values": list(values)}
