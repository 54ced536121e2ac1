"""The observing half of a tick: what the cloud and the prefixes say, and what it means for trials.

Rules: jobs are listed by what changed and only those described; a live job that no list has shown for a while is
described all the same, since lists may lag. An attempt's end is turned into its trial's fate only after everything
under the prefix was read. Each step is shown to the pruner once and in order, and its answer is stored.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial

from tuner.core.calls import UNMETERED, Call, Calls
from tuner.core.events import EventKind
from tuner.core.hints import Hints
from tuner.core.jobs import CredentialsRefused, JobError, JobNotFound, JobService, Observation
from tuner.core.policy import budget, ending, history, placement, proof, stopping
from tuner.core.prices import cost_microusd
from tuner.core.records import (
    NO_STEP,
    Attempt,
    AttemptEnd,
    AttemptState,
    Intent,
    Point,
    Pool,
    Run,
    StopReason,
    Trial,
    TrialState,
)
from tuner.core.states import AttemptEvent, TrialEvent
from tuner.engine import alarms, liveness
from tuner.engine.live_study import LiveStudy, LiveTrial, is_training
from tuner.engine.polling import STALE_POLLS
from tuner.engine.unit_of_work import UnitOfWork
from tuner.spec.records import COST_METRIC, MICROUSD
from tuner.storage.progress import Progress

# Lists may lag, and our clock may differ from the service's by as much as signatures allow: each looks this far back.
_LIST_OVERLAP = timedelta(minutes=7)
# So many prefixes in a row that cannot be read are a store that is away: the others would each wait out a time limit.
_READS_FAILED_MAX = 3


class Observer:
    """Brings memory up to date, for one tick."""

    def __init__(
        self,
        live: LiveStudy,
        jobs: JobService,
        progress: Progress,
        unit: UnitOfWork,
        *,
        calls: Calls = UNMETERED,
        hints: Hints | None = None,
    ) -> None:
        self._live = live
        self._jobs = jobs
        self._calls = calls
        self._hints = hints
        self._progress = progress
        self._unit = unit
        self._now = unit.now
        self._reads_failed = 0  # one after another

    def observe(self) -> None:
        """Everything, in order: jobs, then what lies under the prefixes, then what follows."""
        self._observe_jobs()
        works = self._in_turn()
        self._progress.expect(work.trial.prefix for work in works if _is_to_be_read(work))
        for work in works:
            self._read_progress(work)
            self._judge(work)
            self._conclude(work)
        self._move()
        self._warn()

    def _in_turn(self) -> list[LiveTrial]:
        """Those whose prefix could be read last; then the others, whoever failed longest ago first.

        Only a few that fail are tried in a tick: always the same ones would keep all others from their end.
        """
        failed = {what: choose_pool for choose_pool, what in enumerate(self._live.troubles)}
        return sorted(self._live.trials.values(), key=lambda work: failed.get(work.trial.prefix, -1))

    # --- jobs

    def _observe_jobs(self) -> None:
        works = (work for work in self._live.trials.values() if work.attempt is not None and work.attempt.arn)
        working = {work.attempts[-1].job_name: work for work in works}
        # what one of them cannot tell, another or the next tick does
        looks = {"hints": self._take_hints, "lists": self._list_changed, "jobs": self._describe_due}
        for name, look in looks.items():
            try:
                if look(working):
                    alarms.over(self._live, self._unit, name)
            except JobError as error:
                alarms.trouble(self._live, self._unit, name, error)
                if isinstance(error, CredentialsRefused):
                    return  # nothing else would fare better

    # each of these says whether it asked anybody

    def _take_hints(self, working: Mapping[str, LiveTrial]) -> bool:
        if self._hints is None:
            return False
        self._live.rounds.hinted(self._hints.receive(), working)
        return True

    def _list_changed(self, working: Mapping[str, LiveTrial]) -> bool:
        rounds = self._live.rounds
        rounds.skipped = bool(working) and rounds.list_due(self._now, hints=self._hints is not None)
        if not rounds.skipped:
            return False
        if not self._calls.may_list():
            return False
        # not after now: our clock may have been ahead when they were written
        oldest = min(self._now, *(work.attempts[-1].submitted_at or self._now for work in working.values()))
        changed = self._jobs.list_changed(
            f"{self._unit.study.key}-",
            created_after=oldest - _LIST_OVERLAP,
            modified_after=min(self._now, rounds.listed_at or oldest) - _LIST_OVERLAP,
        )
        rounds.listed(changed, working, self._now)
        return True

    def _describe_due(self, working: Mapping[str, LiveTrial]) -> bool:
        rounds = self._live.rounds
        for name, work in working.items():
            if self._runs_out(work) or self._passes_its_limit(work):
                rounds.press(name)
        attempts = {name: work.attempts[-1] for name, work in working.items()}
        due, stale = rounds.order(attempts, self._now, self._live.policy.poll_s)
        may = self._calls.may(Call.DESCRIBE, len(due), idle=len(stale))
        for name in (*due, *stale)[:may]:
            rounds.asked(name, self._now)
            self._describe(working[name])
        return may > 0

    def _runs_out(self, work: LiveTrial) -> bool:
        """Whether its `max_run` is used up, unless it was interrupted since it was last looked at."""
        moment = work.runs_out_at
        return moment is not None and moment < self._now

    def _passes_its_limit(self, work: LiveTrial) -> bool:
        return budget.passes_its_limit(self._live.may_have_cost(work, self._now), self._live.policy)

    def _describe(self, work: LiveTrial) -> None:
        attempt, unit = work.attempts[-1], self._unit
        try:
            seen = self._jobs.describe(attempt.job_name)
        except JobNotFound:
            if self._is_new(attempt):
                self._live.rounds.press(attempt.job_name)
            else:
                self._end_lost(work)
            return
        if self._awaits_figures(seen):
            return  # not remembered as seen: the next tick describes it again
        self._live.rounds.described(attempt.job_name, seen.modified_at)
        absorbed = history.absorb(attempt, seen, self._now, billed_ratio=self._live.billed_ratio(spot=attempt.spot))
        unit.set_attempt(work, absorbed.attempt)
        unit.drafted(work, attempt.number, absorbed.events)
        work.presence = history.presence(seen)
        if absorbed.attempt.interruptions > attempt.interruptions:
            self._live.lost(attempt.pool, work.presence.since)
        others = [run for run in work.runs if run.attempt != attempt.number]
        mine = [run for run in work.runs if run.attempt == attempt.number]
        unit.set_runs(work, [*others, *proof.merge_spans(attempt.trial, attempt.number, absorbed.spans, mine)])
        work.unread = True
        if attempt.job_name in self._live.uncompared:
            alarms.compare(self._live, unit, work, seen)
        if seen.status.final:
            self._end(work, seen)

    def _is_new(self, attempt: Attempt) -> bool:
        """Whether a job was accepted moments ago and never seen: given up now, a second one would share its prefix."""
        patience = timedelta(seconds=STALE_POLLS * self._live.policy.poll_s)
        return attempt.observed_at is None and self._now < (attempt.submitted_at or attempt.created_at) + patience

    def _awaits_figures(self, seen: Observation) -> bool:
        """Whether a job has ended, but its bill may still come: the status might be shown before the figures."""
        trained = any(row.status == "Training" for row in seen.history)
        patience = timedelta(seconds=STALE_POLLS * self._live.policy.poll_s)
        return seen.status.final and trained and seen.billable_s is None and self._now < seen.modified_at + patience

    def _end(self, work: LiveTrial, seen: Observation) -> None:
        attempt = work.attempts[-1]
        end, reason = history.end_of(seen)
        work.final_metrics = seen.final_metrics
        billable_s, training_s = seen.billable_s, seen.training_s
        if billable_s is None and attempt.run_s > 0:
            # it trained, and the service does not say what it bills: the dearest reading, and said
            billable_s = training_s = round(attempt.run_s + attempt.upload_s)
            self._unit.event(EventKind.BILLING_MISSING, work=work, attempt=attempt.number, assumed_s=billable_s)
        self._book(work, end, reason, billable_s=billable_s, training_s=training_s)

    def _end_lost(self, work: LiveTrial) -> None:
        """The job was deleted by somebody else, and its final figures with it: the dearest reading is booked."""
        attempt = work.attempts[-1]
        seconds = budget.dearest_s(attempt, self._now)
        self._unit.move_attempt(work, AttemptEvent.END, reason="the job was deleted")
        self._unit.event(EventKind.BILLING_MISSING, work=work, attempt=attempt.number, assumed_s=seconds)
        work.unread = True
        reason = f"job {attempt.job_name} was deleted by somebody else"
        self._book(work, AttemptEnd.SERVICE_FAULT, reason, billable_s=seconds, training_s=seconds)

    def _book(
        self, work: LiveTrial, end: AttemptEnd, reason: str | None, *, billable_s: int | None, training_s: int | None
    ) -> None:
        """Write the final figures of an attempt that has just ended into the ledger."""
        attempt, live = work.attempts[-1], self._live
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
        self._unit.set_attempt(work, ended)
        self._unit.event(
            EventKind.LEDGER, work=work, attempt=attempt.number, end=end, billable_s=billable_s, spend_microusd=spend
        )
        live.spent_microusd += spend
        live.learn_ratio(budget.spot_ratio(attempt.spot, billable_s, training_s))
        live.ended(ended)

    # --- what lies under the prefix

    def _read_progress(self, work: LiveTrial) -> None:
        work.more = False
        if not _is_to_be_read(work):
            return
        if self._reads_failed == _READS_FAILED_MAX:
            work.unread = True
            return
        fresh: list[Point] = []
        try:
            # one bounded look a tick: a million lines come in slices, and neither other trials nor the lease wait
            report = self._progress.read(work.trial.prefix)
            fresh = work.take(report)
            ended = work.ended_attempt
            owes = ended is not None and report.whole_through is not None and report.whole_through < ended.number
            work.unread, work.more = report.more or owes, report.more
            liveness.listen(work, self._live.policy, self._now, heard=bool(report.points or report.records))
            self._reads_failed = 0
            alarms.over(self._live, self._unit, work.trial.prefix)
        except OSError as error:
            work.unread = True
            self._reads_failed += not isinstance(error, PermissionError)  # that is an answer, and came at once
            alarms.trouble(self._live, self._unit, work.trial.prefix, error, work)
        self._unit.add_points(fresh)
        if not work.unread:  # a new reader begins at the beginning: half of it would unsay what was proven
            self._prove(work)
        self._report(work, fresh)

    def _prove(self, work: LiveTrial) -> None:
        before = {(run.attempt, run.number): run for run in work.runs}
        proven = proof.prove(work.runs, work.records, work.steps)
        self._unit.set_runs(work, proven)
        for last, run in zip((None, *proven), proven, strict=False):
            was = before[run.attempt, run.number]
            if was.had_checkpoint is None and run.had_checkpoint is not None:
                self._tell_found(work, run, last)
            if run.restarted_from_zero and not was.restarted_from_zero:
                self._unit.event(EventKind.RUN_RESTARTED_FROM_ZERO, work=work, attempt=run.attempt, run=run.number)
            if proof.went_back(run):
                if not proof.went_back(was):
                    self._tell_older(work, run)
            elif run.resumed_from_step is not None and was.resumed_from_step is None:
                self._unit.event(
                    EventKind.RUN_RESUMED, work=work, attempt=run.attempt, run=run.number, step=run.resumed_from_step
                )

    def _tell_older(self, work: LiveTrial, run: Run) -> None:
        step, newest = run.resumed_from_step, run.resume_step
        self._unit.event(
            EventKind.RUN_OLDER_CHECKPOINT, work=work, attempt=run.attempt, run=run.number, step=step, newest=newest
        )

    def _tell_found(self, work: LiveTrial, run: Run, last: Run | None) -> None:
        """Once, when the record of a run is first seen: its newest checkpoint was passed over, or none lay there."""
        torn = proof.torn_step(work.records[run.attempt, run.run_id or ""])
        if torn is not None:
            self._unit.event(
                EventKind.CHECKPOINT_TORN,
                work=work,
                attempt=run.attempt,
                run=run.number,
                step=torn,
                used=run.resume_step,
            )
        elif last is not None and run.had_checkpoint is False:
            self._unit.event(
                EventKind.RUN_NOTHING_SAVED, work=work, attempt=run.attempt, run=run.number, lost_s=last.lost_work_s
            )

    def _report(self, work: LiveTrial, fresh: list[Point]) -> None:
        """Show new values of the objective to the pruner, one step at a time, each step once."""
        objectives = self._live.spec.objectives
        for point in fresh:
            if point.name != objectives[0].metric:
                continue
            trial = work.trial
            if trial.last_step is None or point.step >= trial.last_step:
                trial = replace(trial, last_step=point.step, last_value=point.value)
            if point.step != NO_STEP and self._live.spec.judges_steps:
                trial = self._show(trial, point)
            self._unit.set_trial(work, trial)

    def _show(self, trial: Trial, point: Point) -> Trial:
        if math.isfinite(point.value):
            return self._ask_pruner(trial, point)
        self._live.proposer.withdraw(trial.number, point.step)  # an earlier run may have reported a number
        return trial

    def _ask_pruner(self, trial: Trial, point: Point) -> Trial:
        judged = trial.judged_step is not None and point.step <= trial.judged_step
        if judged or trial.pruned_at_step is not None:
            self._live.proposer.replay(trial.number, point.step, point.value)
            return trial
        verdict = self._live.proposer.report(trial.number, point.step, point.value)
        self._unit.remember(verdict.study_attrs)
        return replace(
            trial,
            judged_step=point.step,
            attrs={**trial.attrs, **verdict.attrs},
            pruned_at_step=point.step if verdict.prune else None,
        )

    # --- what should stop

    def _judge(self, work: LiveTrial) -> None:
        attempt = work.attempt
        if attempt is None or attempt.state is AttemptState.STOPPING:
            return
        job = self._job_of(work, attempt)
        rule = stopping.reason_to_stop(job)
        if rule is not None and rule.reason is not attempt.stop_reason:
            attempt = replace(
                attempt, stop_reason=rule.reason, stop_wanted_at=self._now, stop_by=stopping.stop_by(rule, job)
            )
            self._unit.set_attempt(work, attempt)
            self._unit.event(EventKind.STOP_WANTED, work=work, attempt=attempt.number, why=rule.reason)
        if stopping.may_stop_now(replace(job, attempt=attempt)):
            self._unit.move_attempt(work, AttemptEvent.STOP, why=attempt.stop_reason)

    def _job_of(self, work: LiveTrial, attempt: Attempt) -> stopping.LiveJob:
        waits, no_progress = work.waits_since is not None, work.no_progress
        return stopping.LiveJob(
            trial=work.trial,
            attempt=attempt,
            policy=self._live.policy,
            now=self._now,
            intent=self._unit.study.intent,
            halted=self._live.halted is not None,
            past_limit=self._passes_its_limit(work),
            no_progress=no_progress,
            may_go_on_demand=(waits or no_progress) and self._has_a_way_out(work, attempt),
            silent_s=None if work.unread else work.silence.lasted_s,
            waits=waits,
            checkpoint_at=work.checkpoint_at,
        )

    # --- what should wait elsewhere

    def _move(self) -> None:
        """Stop jobs that wait for spot capacity where others of the study's pools are likelier to have some."""
        live = self._live
        if live.policy.pools == 1 or self._unit.study.intent is not Intent.RUN:
            return
        waiting = [
            (work.waits_since, work.trial.number, work)
            for work in live.trials.values()
            if work.waits_since is not None and work.attempts[-1].stop_reason is None
        ]
        if not waiting or (self._now - min(waiting)[0]).total_seconds() < placement.PATIENCE_S:
            return
        snapshot = live.refresh_capacity(self._now)
        for since, _, work in sorted(waiting):
            pays = partial(live.could_pay, work)
            pool = placement.elsewhere(work.attempts, live.policy, snapshot, since, pays)
            if pool is not None:
                self._leave(work, pool)
                snapshot.movers += 1
                snapshot.attempts[placement.kind_of(pool)] += 1  # its place is kept for the others of this tick

    def _leave(self, work: LiveTrial, pool: Pool) -> None:
        attempt, unit = work.attempts[-1], self._unit
        unit.set_attempt(
            work, replace(attempt, stop_reason=StopReason.MOVE, stop_wanted_at=self._now, stop_by=self._now)
        )
        unit.event(
            EventKind.STOP_WANTED,
            work=work,
            attempt=attempt.number,
            why=StopReason.MOVE,
            left=str(attempt.pool),
            to=str(pool),
        )
        unit.move_attempt(work, AttemptEvent.STOP, why=StopReason.MOVE)

    def _warn(self) -> None:
        """Keep the warnings of the study as they are now; what is new is also an event."""
        unit = self._unit
        fresh = liveness.warnings(self._live.trials.values(), self._live.policy, self._now, self._live.sync_delay_s)
        known = unit.study.warnings
        for line in fresh:
            if line not in known:
                unit.event(EventKind.WARNING, message=line)
        now_known = liveness.replaced(known, fresh)
        if now_known != known:
            unit.set_study(replace(unit.study, warnings=now_known))

    # --- ends

    def _conclude(self, work: LiveTrial) -> None:
        """Apply what the end of an attempt means for its trial, once everything under its prefix was read."""
        trial, unit = work.trial, self._unit
        ends = work.ended_attempt is not None and trial.state is TrialState.RUNNING and not work.unread
        if not ends and trial.state is not TrialState.BACKING_OFF:
            return
        values = self._values(work) if ends else None
        verdict = ending.after_end(self._case(work, values))
        if verdict is None:
            return
        if verdict.fault:
            unit.set_trial(work, replace(work.trial, faults=work.trial.faults + 1))
        if verdict.event is TrialEvent.SUCCEED:
            alarms.cross_check(self._live, unit, work, work.final_metrics)
        unit.move_trial(
            work,
            verdict.event,
            reason=verdict.reason,
            due_at=verdict.due_at,
            values=values if verdict.event is TrialEvent.SUCCEED else None,
        )
        tell(self._live, unit, work)

    def _case(self, work: LiveTrial, values: tuple[float, ...] | None) -> ending.EndedAttempt:
        no_progress = work.trial.state is TrialState.RUNNING and work.no_progress
        return ending.EndedAttempt(
            trial=work.trial,
            attempts=work.attempts,
            policy=self._live.policy,
            now=self._now,
            intent=self._unit.study.intent,
            has_value=values is not None,
            no_progress=no_progress,
            may_go_on_demand=no_progress and self._has_a_way_out(work, work.attempts[-1]),
        )

    def _has_a_way_out(self, work: LiveTrial, attempt: Attempt) -> bool:
        """Whether a trial that trained for nothing on spot may train on demand."""
        return attempt.spot and self._live.goes_on_demand(work)

    def _values(self, work: LiveTrial) -> tuple[float, ...] | None:
        """The objectives' values, None unless all are finite."""
        spent = budget.final_microusd(work.attempts) / MICROUSD
        values = [
            spent if objective.metric == COST_METRIC else work.value(objective.metric)
            for objective in self._live.spec.objectives
        ]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        return tuple(finite) if len(finite) == len(values) else None


def _is_to_be_read(work: LiveTrial) -> bool:
    return work.unread or (work.attempt is not None and is_training(work.attempt))


def tell(live: LiveStudy, unit: UnitOfWork, work: LiveTrial) -> None:
    """Let the sampler learn of an end, in the same commit in which our row says it."""
    trial = work.trial
    if not trial.state.terminal:
        return
    delta = live.proposer.tell(trial.number, trial.state, trial.values)
    unit.remember(delta.study_attrs)
    if delta.attrs:
        unit.set_trial(work, replace(trial, attrs={**trial.attrs, **delta.attrs}))
