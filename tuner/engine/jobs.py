"""Looking at jobs: what changed is described, and what a description says is written to the attempt.

Rules: jobs are listed by what changed, and only those are described. A live job that no list has shown for a while is
described anyway, because lists may lag. An attempt ends with its final figures, or with the highest possible ones where
the service has lost them.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from tuner.core.calls import UNMETERED, Call, Calls
from tuner.core.events import EventKind
from tuner.core.hints import Hints
from tuner.core.jobs import CredentialsRefused, JobError, JobNotFound, JobService, Observation
from tuner.core.policy import budget, history, proof
from tuner.core.prices import cost_microusd
from tuner.core.records import Attempt, AttemptEnd
from tuner.core.states import AttemptEvent
from tuner.engine import alarms, stopping
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.engine.polling import STALE_POLLS
from tuner.engine.unit_of_work import UnitOfWork

# Lists may lag, and our clock may differ from the service's by as much as signatures allow: each looks this far back.
_LIST_OVERLAP = timedelta(minutes=7)


class JobObserver:
    """Brings live attempts up to date with their jobs, for one tick."""

    def __init__(
        self,
        live: LiveStudy,
        jobs: JobService,
        unit: UnitOfWork,
        *,
        calls: Calls = UNMETERED,
        hints: Hints | None = None,
    ) -> None:
        self._live = live
        self._jobs = jobs
        self._calls = calls
        self._hints = hints
        self._unit = unit
        self._now = unit.now

    def look(self) -> None:
        """Take hints, list what changed, and describe the jobs that are due."""
        trials = (trial for trial in self._live.trials.values() if trial.attempt is not None and trial.attempt.arn)
        by_name = {trial.attempts[-1].job_name: trial for trial in trials}
        # if one of these fails, another one or the next tick finds what changed
        looks = {"hints": self._take_hints, "lists": self._list_changed, "jobs": self._describe_due}
        for name, look in looks.items():
            try:
                if look(by_name):
                    alarms.over(self._live, self._unit, name)
            except JobError as error:
                alarms.trouble(self._live, self._unit, name, error)
                if isinstance(error, CredentialsRefused):
                    return  # every other call would fail, too

    # each of these returns whether it made a call

    def _take_hints(self, by_name: Mapping[str, LiveTrial]) -> bool:
        if self._hints is None:
            return False
        self._live.polls.hinted(self._hints.receive(), by_name)
        return True

    def _list_changed(self, by_name: Mapping[str, LiveTrial]) -> bool:
        polls = self._live.polls
        polls.skipped = bool(by_name) and polls.list_due(self._now, hints=self._hints is not None)
        if not polls.skipped:
            return False
        if not self._calls.may_list():
            return False
        # not after now: our clock may have been ahead when these times were written
        oldest = min(self._now, *(trial.attempts[-1].submitted_at or self._now for trial in by_name.values()))
        changed = self._jobs.list_changed(
            f"{self._unit.study.key}-",
            created_after=oldest - _LIST_OVERLAP,
            modified_after=min(self._now, polls.listed_at or oldest) - _LIST_OVERLAP,
        )
        polls.listed(changed, by_name, self._now)
        return True

    def _describe_due(self, by_name: Mapping[str, LiveTrial]) -> bool:
        polls = self._live.polls
        for name, trial in by_name.items():
            if self._runs_out(trial) or stopping.passes_its_limit(self._live, self._unit, trial):
                polls.press(name)
        attempts = {name: trial.attempts[-1] for name, trial in by_name.items()}
        due, stale = polls.order(attempts, self._now, self._live.policy.poll_s)
        may = self._calls.may(Call.DESCRIBE, len(due), idle=len(stale))
        for name in (*due, *stale)[:may]:
            polls.asked(name, self._now)
            self._describe(by_name[name])
        return may > 0

    def _runs_out(self, trial: LiveTrial) -> bool:
        """Whether its `max_run` is used up, unless it was interrupted since it was last looked at."""
        moment = trial.runs_out_at
        return moment is not None and moment < self._now

    def _describe(self, trial: LiveTrial) -> None:
        attempt, unit = trial.attempts[-1], self._unit
        try:
            seen = self._jobs.describe(attempt.job_name)
        except JobNotFound:
            if self._is_new(attempt):
                self._live.polls.press(attempt.job_name)
            else:
                self._end_lost(trial)
            return
        if self._awaits_figures(seen):
            return  # not noted as seen: the next tick describes it again
        self._live.polls.described(attempt.job_name, seen.modified_at)
        absorbed = history.absorb(attempt, seen, self._now, billed_ratio=self._live.billed_ratio(spot=attempt.spot))
        unit.set_attempt(trial, absorbed.attempt)
        unit.drafted(trial, attempt.number, absorbed.events)
        trial.presence = history.presence(seen)
        if absorbed.attempt.interruptions > attempt.interruptions:
            self._live.lost(attempt.pool, trial.presence.since)
        others = [run for run in trial.runs if run.attempt != attempt.number]
        mine = [run for run in trial.runs if run.attempt == attempt.number]
        unit.set_runs(trial, [*others, *proof.merge_spans(attempt.trial, attempt.number, absorbed.spans, mine)])
        trial.unread = True
        if attempt.job_name in self._live.uncompared:
            alarms.compare(self._live, unit, trial, seen)
        if seen.status.final:
            self._end(trial, seen)

    def _is_new(self, attempt: Attempt) -> bool:
        """Whether a job was accepted moments ago and never seen: if given up, a second job would share its prefix."""
        patience = timedelta(seconds=STALE_POLLS * self._live.policy.poll_s)
        return attempt.observed_at is None and self._now < (attempt.submitted_at or attempt.created_at) + patience

    def _awaits_figures(self, seen: Observation) -> bool:
        """Whether a job has ended and its bill may still come: the status may be shown before the figures."""
        trained = any(row.status == "Training" for row in seen.history)
        patience = timedelta(seconds=STALE_POLLS * self._live.policy.poll_s)
        return seen.status.final and trained and seen.billable_s is None and self._now < seen.modified_at + patience

    def _end(self, trial: LiveTrial, seen: Observation) -> None:
        attempt = trial.attempts[-1]
        end, reason = history.end_of(seen)
        trial.final_metrics = seen.final_metrics
        billable_s, training_s = seen.billable_s, seen.training_s
        if billable_s is None and attempt.run_s > 0:
            # it trained, and the service does not report the bill: book the highest possible one, with an event
            billable_s = training_s = round(attempt.run_s + attempt.upload_s)
            self._unit.event(EventKind.BILLING_MISSING, trial=trial, attempt=attempt.number, assumed_s=billable_s)
        self._book(trial, end, reason, billable_s=billable_s, training_s=training_s)

    def _end_lost(self, trial: LiveTrial) -> None:
        """Somebody else deleted the job and its final figures: book the highest possible bill."""
        attempt = trial.attempts[-1]
        seconds = budget.dearest_s(attempt, self._now)
        self._unit.move_attempt(trial, AttemptEvent.END, reason="the job was deleted")
        self._unit.event(EventKind.BILLING_MISSING, trial=trial, attempt=attempt.number, assumed_s=seconds)
        trial.unread = True
        reason = f"job {attempt.job_name} was deleted by somebody else"
        self._book(trial, AttemptEnd.SERVICE_FAULT, reason, billable_s=seconds, training_s=seconds)

    def _book(
        self, trial: LiveTrial, end: AttemptEnd, reason: str | None, *, billable_s: int | None, training_s: int | None
    ) -> None:
        """Write the final figures of an attempt that has just ended into the ledger."""
        attempt, live = trial.attempts[-1], self._live
        rate = attempt.rate_microusd_per_h
        spend = cost_microusd(billable_s or 0, attempt.instance_count, rate)
        on_demand = cost_microusd(training_s or billable_s or 0, attempt.instance_count, rate)
        ended = replace(
            attempt,
            end=end,
            reason=reason,
            ended_at=self._now,
            billable_s=billable_s,
            training_s=training_s,
            spend_microusd=spend,
            on_demand_microusd=on_demand,
        )
        self._unit.set_attempt(trial, ended)
        self._unit.event(
            EventKind.LEDGER, trial=trial, attempt=attempt.number, end=end, billable_s=billable_s, spend_microusd=spend
        )
        live.spent_microusd += spend
        live.learn_ratio(budget.spot_ratio(attempt.spot, billable_s, training_s))
        live.ended(ended)
