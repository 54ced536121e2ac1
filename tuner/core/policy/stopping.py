"""Why a job should be stopped, by when, and whether it may be stopped now: one ordered list of named rules.

Rules: pure. The first rule of `RULES` that applies decides. A stop of the user or for a limit waits for a checkpoint,
since it should cost no work; every other stop is sent at once. A recorded stop order stays until another rule takes
its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuner.core.policy.settings import Policy
from tuner.core.records import Attempt, AttemptState, Intent, StopReason, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A trial with a live attempt, with everything that a stop depends on."""

    trial: Trial
    attempt: Attempt
    policy: Policy
    now: datetime
    intent: Intent = Intent.RUN
    halted: bool = False  # the study begins no further job
    past_limit: bool = False  # the trial may have cost more than its limit
    no_progress: bool = False  # its runs train without a newer checkpoint
    may_go_on_demand: bool = False  # its next attempt would be on demand, and this one is on spot
    silent_s: float | None = None  # since its last sign of life; None: something under its prefix is unread
    waits: bool = False  # no instance of the job is up
    checkpoint_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """One reason to stop."""

    name: str
    why: str  # one sentence for the reader
    applies: Callable[[LiveJob], bool]
    reason: StopReason
    waits: bool = False  # for a checkpoint, at most `stop_within`


def reason_to_stop(job: LiveJob) -> StopRule | None:
    """The first rule that applies; None while the job should go on."""
    return next((rule for rule in RULES if rule.applies(job)), None)


def stop_by(rule: StopRule, job: LiveJob) -> datetime:
    """When a stop that this rule asks for is sent at the latest."""
    waits = rule.waits and job.intent is not Intent.STOP_NOW
    return job.now + timedelta(seconds=job.policy.stop_within_s if waits else 0.0)


def may_stop_now(job: LiveJob) -> bool:
    """Whether a recorded stop order is carried out now.

    A stop that waits is sent once a checkpoint newer than the order lies in the store, or nothing trains.
    """
    attempt = job.attempt
    if attempt.stop_reason is None:
        return False
    if attempt.state is not AttemptState.TRAINING or attempt.stop_by is None or job.now >= attempt.stop_by:
        return True
    if has_run_out(attempt):
        return True
    wanted_at = attempt.stop_wanted_at
    return wanted_at is not None and job.checkpoint_at is not None and job.checkpoint_at > wanted_at


def has_run_out(attempt: Attempt) -> bool:
    """Whether its job used up its `max_run`, and the service let it run on: the service may count each run alone."""
    return attempt.run_s > attempt.max_run_s


def past_deadline(policy: Policy, now: datetime) -> bool:
    return policy.deadline_at is not None and now >= policy.deadline_at


def _not_asked_for(job: LiveJob) -> bool:
    return job.halted and job.attempt.state is AttemptState.SUBMITTING and job.attempt.arn is None


def _stalled(job: LiveJob) -> bool:
    patience_s = job.policy.stall_after_s
    trains = job.attempt.state is AttemptState.TRAINING
    return trains and patience_s is not None and job.silent_s is not None and job.silent_s > patience_s


RULES: tuple[StopRule, ...] = (
    StopRule(
        name="cancelled",
        why="The user cancelled the study.",
        applies=lambda job: job.intent is Intent.CANCEL,
        reason=StopReason.CANCEL,
    ),
    StopRule(
        name="not sent yet",
        why="The study begins no further job, and this one was not sent to the service yet.",
        applies=_not_asked_for,
        reason=StopReason.USER,
        waits=True,
    ),
    StopRule(
        name="pruned",
        why="The pruner decided against the trial.",
        applies=lambda job: job.trial.pruned_at_step is not None,
        reason=StopReason.PRUNE,
    ),
    StopRule(
        name="over budget",
        why="The trial may have cost more than its own budget.",
        applies=lambda job: job.past_limit,
        reason=StopReason.TRIAL_BUDGET,
    ),
    StopRule(
        name="no progress on spot",
        why="Spot takes away what the trial trains each time before it is saved; on demand keeps it.",
        applies=lambda job: job.no_progress and job.may_go_on_demand,
        reason=StopReason.MOVE,
    ),
    StopRule(
        name="no progress",
        why="Whole runs of the trial trained without a newer checkpoint, and it has nowhere else to go.",
        applies=lambda job: job.no_progress,
        reason=StopReason.NO_PROGRESS,
    ),
    StopRule(
        name="stalled",
        why="The job trains, but nothing new came from it for `stall_after`.",
        applies=_stalled,
        reason=StopReason.STALL,
    ),
    StopRule(
        name="stopped by the user",
        why="The user stopped the study.",
        applies=lambda job: job.intent in (Intent.STOP, Intent.STOP_NOW),
        reason=StopReason.USER,
        waits=True,
    ),
    StopRule(
        name="past the deadline",
        why="The deadline of the study is over.",
        applies=lambda job: past_deadline(job.policy, job.now),
        reason=StopReason.LIMIT,
        waits=True,
    ),
    StopRule(
        name="ran out",
        why="The job used up its `max_run`, and the service let it run on.",
        applies=lambda job: has_run_out(job.attempt),
        reason=StopReason.LIMIT,
        waits=True,
    ),
    StopRule(
        name="waits on spot",
        why="The job waits for spot capacity, and the trial's next attempt would be on demand.",
        applies=lambda job: job.waits and job.may_go_on_demand,
        reason=StopReason.MOVE,
    ),
)
