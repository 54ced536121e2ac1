"""Writing what the rules say about live jobs: stop orders, stops that are due, and moves to another pool.

Rules: why and when a job is stopped is decided by `core.policy.stopping`, where a waiting job moves by
`core.policy.placement`. A stop order is recorded here with its event before it is carried out; the dispatcher
sends the stop.
"""

from dataclasses import replace
from functools import partial

from tuner.core.events import EventKind
from tuner.core.policy import budget, placement, stopping
from tuner.core.policy.placement import WaitingJob
from tuner.core.records import Attempt, AttemptState, Pool, StopReason
from tuner.core.states import AttemptEvent
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.engine.unit_of_work import UnitOfWork


def stop_if_due(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial) -> None:
    """Record why the live job of a trial should stop, and carry out a recorded stop order that is due."""
    attempt = trial.attempt
    if attempt is None or attempt.state is AttemptState.STOPPING:
        return
    job = _job_of(live, unit, trial, attempt)
    rule = stopping.reason_to_stop(job)
    if rule is not None and rule.reason is not attempt.stop_reason:
        stop_by = stopping.stop_by(rule, job)
        attempt = replace(attempt, stop_reason=rule.reason, stop_wanted_at=unit.now, stop_by=stop_by)
        unit.set_attempt(trial, attempt)
        unit.event(EventKind.STOP_WANTED, trial=trial, attempt=attempt.number, why=rule.reason)
    # most jobs have no stop order: the copy is made for the few that do
    if attempt.stop_reason is not None and stopping.may_stop_now(replace(job, attempt=attempt)):
        unit.move_attempt(trial, AttemptEvent.STOP, why=attempt.stop_reason)


def passes_its_limit(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial) -> bool:
    """Whether a trial may have cost more than its own budget."""
    return budget.passes_its_limit(live.may_have_cost(trial, unit.now), live.policy)


def move_waiting(live: LiveStudy, unit: UnitOfWork) -> None:
    """Stop jobs that wait for spot capacity where another pool of the study is likelier to have some."""
    waiting = [
        WaitingJob(trial.record.number, trial.attempts, trial.waits_since, partial(live.could_pay, trial))
        for trial in live.trials.values()
        if trial.waits_since is not None and trial.attempts[-1].stop_reason is None
    ]
    if placement.may_move(waiting, live.policy, unit.study.intent, unit.now):
        for number, pool in placement.moves(waiting, live.policy, live.refresh_capacity(unit.now)):
            _leave(unit, live.trials[number], pool)


def _job_of(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial, attempt: Attempt) -> stopping.LiveJob:
    waits, no_progress = trial.waits_since is not None, trial.no_progress
    return stopping.LiveJob(
        trial=trial.record,
        attempt=attempt,
        policy=live.policy,
        now=unit.now,
        intent=unit.study.intent,
        halted=live.halted is not None,
        past_limit=passes_its_limit(live, unit, trial),
        no_progress=no_progress,
        may_go_on_demand=(waits or no_progress) and live.may_go_on_demand(trial),
        silent_s=None if trial.unread else trial.silence.lasted_s,
        waits=waits,
        checkpoint_at=trial.checkpoint_at,
    )


def _leave(unit: UnitOfWork, trial: LiveTrial, pool: Pool) -> None:
    attempt, why = trial.attempts[-1], StopReason.MOVE
    unit.set_attempt(trial, replace(attempt, stop_reason=why, stop_wanted_at=unit.now, stop_by=unit.now))
    places = {"left": str(attempt.pool), "to": str(pool)}
    unit.event(EventKind.STOP_WANTED, trial=trial, attempt=attempt.number, why=why, **places)
    unit.move_attempt(trial, AttemptEvent.STOP, why=why)
