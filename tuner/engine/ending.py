"""Writing what an ended attempt means for its trial, and reporting the end of a trial to the sampler.

Rules: what it means is decided by `core.policy.ending`. It is written only once everything under the trial's prefix was
read. The sampler learns of an end in the same commit in which our row says it.
"""

import math
from dataclasses import replace

from tuner.core.policy import budget, ending
from tuner.core.records import TrialState
from tuner.core.states import TrialEvent
from tuner.engine import alarms
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.engine.unit_of_work import UnitOfWork
from tuner.spec.records import COST_METRIC, MICROUSD


def conclude(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial) -> None:
    """Apply what the end of the last attempt means; a trial that already waits may be given up."""
    state = trial.record.state
    ends = trial.ended_attempt is not None and state is TrialState.RUNNING and not trial.unread
    if not ends and state is not TrialState.BACKING_OFF:
        return
    values = _values(live, trial) if ends else None
    verdict = ending.after_end(_ended(live, unit, trial, values))
    if verdict is None:
        return
    if verdict.fault:
        unit.set_trial(trial, replace(trial.record, faults=trial.record.faults + 1))
    if verdict.event is TrialEvent.SUCCEED:
        alarms.cross_check(live, unit, trial, trial.final_metrics)
    unit.move_trial(
        trial,
        verdict.event,
        reason=verdict.reason,
        due_at=verdict.due_at,
        values=values if verdict.event is TrialEvent.SUCCEED else None,
    )
    report_end(live, unit, trial)


def report_end(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial) -> None:
    """Report a trial that has ended to the sampler."""
    record = trial.record
    if not record.state.terminal:
        return
    delta = live.proposer.tell(record.number, record.state, record.values)
    unit.remember(delta.study_attrs)
    if delta.attrs:
        unit.set_trial(trial, replace(record, attrs={**record.attrs, **delta.attrs}))


def _ended(
    live: LiveStudy, unit: UnitOfWork, trial: LiveTrial, values: tuple[float, ...] | None
) -> ending.EndedAttempt:
    no_progress = trial.record.state is TrialState.RUNNING and trial.no_progress
    return ending.EndedAttempt(
        trial=trial.record,
        attempts=trial.attempts,
        policy=live.policy,
        now=unit.now,
        intent=unit.study.intent,
        has_value=values is not None,
        no_progress=no_progress,
        may_go_on_demand=no_progress and live.may_go_on_demand(trial),
    )


def _values(live: LiveStudy, trial: LiveTrial) -> tuple[float, ...] | None:
    """The objectives' values, None unless all are finite."""
    spent = budget.final_microusd(trial.attempts) / MICROUSD
    values = [
        spent if objective.metric == COST_METRIC else trial.value(objective.metric)
        for objective in live.spec.objectives
    ]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return tuple(finite) if len(finite) == len(values) else None
