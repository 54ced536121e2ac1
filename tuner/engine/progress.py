"""Reading what lies under the prefixes of trials: metrics, run records and checkpoints.

Rules: each step is shown to the pruner once and in order, and its answer is stored. Where a run started is proven only
once everything was read. A storage that does not answer is asked a few times a tick, not once for each trial.
"""

import math
from dataclasses import replace

from tuner.core.events import EventKind
from tuner.core.policy import proof
from tuner.core.records import NO_STEP, Point, Run, Trial
from tuner.engine import alarms, liveness
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial, is_training
from tuner.engine.unit_of_work import UnitOfWork
from tuner.storage.progress import Progress

# After this many prefixes in a row that cannot be read, the storage is away: the others would each time out, too.
_READS_FAILED_MAX = 3


class ProgressObserver:
    """Brings trials up to date with their prefixes, for one tick."""

    def __init__(self, live: LiveStudy, progress: Progress, unit: UnitOfWork) -> None:
        self._live = live
        self._progress = progress
        self._unit = unit
        self._now = unit.now
        self._reads_failed = 0  # one after another

    def read(self, trial: LiveTrial) -> None:
        """Read what is new under the prefix of a trial, if something may be."""
        trial.more = False
        if not is_to_be_read(trial):
            return
        if self._reads_failed == _READS_FAILED_MAX:
            trial.unread = True
            return
        fresh: list[Point] = []
        try:
            # one bounded read a tick: a million lines come in slices, so that other trials and the lease do not wait
            report = self._progress.read(trial.record.prefix)
            fresh = trial.take(report)
            ended = trial.ended_attempt
            owes = ended is not None and report.whole_through is not None and report.whole_through < ended.number
            trial.unread, trial.more = report.more or owes, report.more
            liveness.note_silence(trial, self._live.policy, self._now, news=bool(report.points or report.records))
            self._reads_failed = 0
            alarms.over(self._live, self._unit, trial.record.prefix)
        except OSError as error:
            trial.unread = True
            self._reads_failed += not isinstance(error, PermissionError)  # a refusal is an answer, and comes at once
            alarms.trouble(self._live, self._unit, trial.record.prefix, error, trial)
        self._unit.add_points(fresh)
        if not trial.unread:  # a new reader starts from the beginning: half of the lines would undo what was proven
            self._prove(trial)
        self._judge_steps(trial, fresh)

    def _prove(self, trial: LiveTrial) -> None:
        before = {(run.attempt, run.number): run for run in trial.runs}
        proven = proof.prove(trial.runs, trial.records, trial.steps)
        self._unit.set_runs(trial, proven)
        for last, run in zip((None, *proven), proven, strict=False):
            was = before[run.attempt, run.number]
            if was.had_checkpoint is None and run.had_checkpoint is not None:
                self._report_found(trial, run, last)
            if run.restarted_from_zero and not was.restarted_from_zero:
                self._unit.event(EventKind.RUN_RESTARTED_FROM_ZERO, trial=trial, attempt=run.attempt, run=run.number)
            if proof.went_back(run):
                if not proof.went_back(was):
                    self._report_older(trial, run)
            elif run.resumed_from_step is not None and was.resumed_from_step is None:
                self._unit.event(
                    EventKind.RUN_RESUMED, trial=trial, attempt=run.attempt, run=run.number, step=run.resumed_from_step
                )

    def _report_older(self, trial: LiveTrial, run: Run) -> None:
        step, newest = run.resumed_from_step, run.resume_step
        self._unit.event(
            EventKind.RUN_OLDER_CHECKPOINT, trial=trial, attempt=run.attempt, run=run.number, step=step, newest=newest
        )

    def _report_found(self, trial: LiveTrial, run: Run, last: Run | None) -> None:
        """When the record of a run is first seen: report a newest checkpoint that was torn, or that none lay there."""
        torn = proof.torn_step(trial.records[run.attempt, run.run_id or ""])
        if torn is not None:
            self._unit.event(
                EventKind.CHECKPOINT_TORN,
                trial=trial,
                attempt=run.attempt,
                run=run.number,
                step=torn,
                used=run.resume_step,
            )
        elif last is not None and run.had_checkpoint is False:
            self._unit.event(
                EventKind.RUN_NOTHING_SAVED, trial=trial, attempt=run.attempt, run=run.number, lost_s=last.lost_work_s
            )

    def _judge_steps(self, trial: LiveTrial, fresh: list[Point]) -> None:
        """Show new values of the objective to the pruner, one step at a time, each step once."""
        objectives = self._live.spec.objectives
        for point in fresh:
            if point.name != objectives[0].metric:
                continue
            record = trial.record
            if record.last_step is None or point.step >= record.last_step:
                record = replace(record, last_step=point.step, last_value=point.value)
            if point.step != NO_STEP and self._live.spec.judges_steps:
                record = self._show(record, point)
            self._unit.set_trial(trial, record)

    def _show(self, record: Trial, point: Point) -> Trial:
        if math.isfinite(point.value):
            return self._ask_pruner(record, point)
        self._live.proposer.withdraw(record.number, point.step)  # an earlier run may have reported a number
        return record

    def _ask_pruner(self, record: Trial, point: Point) -> Trial:
        judged = record.judged_step is not None and point.step <= record.judged_step
        if judged or record.pruned_at_step is not None:
            self._live.proposer.replay(record.number, point.step, point.value)
            return record
        verdict = self._live.proposer.report(record.number, point.step, point.value)
        self._unit.remember(verdict.study_attrs)
        return replace(
            record,
            judged_step=point.step,
            attrs={**record.attrs, **verdict.attrs},
            pruned_at_step=point.step if verdict.prune else None,
        )


def is_to_be_read(trial: LiveTrial) -> bool:
    """Whether something new may lie under the trial's prefix."""
    return trial.unread or (trial.attempt is not None and is_training(trial.attempt))
