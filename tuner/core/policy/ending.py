"""What an ended attempt means for its trial: one table of named rules, and the first one that applies decides.

The same table says when a trial that waits for its next attempt is given up: the rules marked `while_waiting` are asked
again, since a limit may have been lowered.

Rules: pure. The order of `RULES` is the order of precedence. What ends the trial for good stands before what ends it
for a limit, and that stands before what starts it again. The table of ends in the documentation is generated from
`RULES` (`python -m tuner.core.policy.ending`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from tuner.core.jobs import OUT_OF_MEMORY, out_of_memory_at
from tuner.core.policy import budget
from tuner.core.policy.settings import Policy
from tuner.core.records import Attempt, AttemptEnd, Intent, StopReason, Trial, TrialState
from tuner.core.states import TrialEvent

_INTERNAL = "InternalServerError"
# The back-off doubles from the poll interval to this: a whole pool is often away for minutes (median 20 to 60).
_BACK_OFF_MAX_S = 600.0
_BACK_OFF_DOUBLINGS_MAX = 10


@dataclass(frozen=True, kw_only=True)
class EndedAttempt:
    """A trial whose last attempt has ended, with everything that its fate depends on."""

    trial: Trial
    attempts: Sequence[Attempt]
    policy: Policy
    now: datetime
    intent: Intent = Intent.RUN
    has_value: bool = False  # every objective has a finite value
    no_progress: bool = False  # its runs train without a newer checkpoint
    may_go_on_demand: bool = False  # its next attempt would be on demand, and this one was on spot

    @property
    def attempt(self) -> Attempt:
        return self.attempts[-1]

    @cached_property
    def is_fault(self) -> bool:
        """Whether the end counts to `max_faults`."""
        if self.stopped_for(StopReason.STALL) or self.attempt.end is AttemptEnd.SERVICE_FAULT:
            return True
        failed = self.attempt.end is AttemptEnd.SCRIPT_ERROR and self.attempt.stop_reason is None
        return failed and retryable(self.attempt.reason or "", self.policy)

    @property
    def fault_reason(self) -> str:
        if self.stopped_for(StopReason.STALL):
            return str(StopReason.STALL)
        return self.attempt.reason or str(self.attempt.end)

    def stopped_for(self, *reasons: StopReason) -> bool:
        """Whether it ended by our stop: a script that fails while it is being stopped fails because of SIGTERM."""
        return self.attempt.stop_reason in reasons and self.attempt.end in (AttemptEnd.STOPPED, AttemptEnd.SCRIPT_ERROR)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a trial. `due_at` is set only for `back_off`; None: the trial waits for `resume`."""

    event: TrialEvent
    reason: str | None = None
    due_at: datetime | None = None
    fault: bool = False  # counts to max_faults


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRule:
    """One row of the table."""

    name: str
    ended: str  # how the attempt ended, as documented
    means: str  # what becomes of the trial, as documented
    applies: Callable[[EndedAttempt], bool]
    event: TrialEvent
    reason: Callable[[EndedAttempt], str | None] = lambda _: None
    due_at: Callable[[EndedAttempt], datetime | None] = lambda _: None
    while_waiting: bool = False

    def verdict(self, ended: EndedAttempt) -> Verdict:
        goes_on = self.event is TrialEvent.BACK_OFF and ended.intent is Intent.RUN
        return Verdict(
            self.event,
            self.reason(ended),
            due_at=self.due_at(ended) if goes_on else None,
            fault=ended.trial.state is TrialState.RUNNING and self.counts_fault and ended.is_fault,
        )

    @property
    def counts_fault(self) -> bool:
        """A trial that succeeded, was pruned or cancelled has no fault to count."""
        return self.event in (TrialEvent.BACK_OFF, TrialEvent.FAIL)


def after_end(ended: EndedAttempt) -> Verdict | None:
    """What the end of the last attempt means for its trial; None if the trial already waits and goes on waiting."""
    rule = first_rule(ended)
    return None if rule is None else rule.verdict(ended)


def first_rule(ended: EndedAttempt) -> EndRule | None:
    """The rule that decides; None if the trial already waits and goes on waiting."""
    waits = ended.trial.state is not TrialState.RUNNING
    if waits and ended.intent is not Intent.RUN:
        return None
    for rule in RULES:
        if (rule.while_waiting or not waits) and rule.applies(ended):
            return rule
    if waits:
        return None
    raise AssertionError(f"attempt {ended.attempt.job_name} ended as {ended.attempt.end}, which no rule covers")


def retryable(failure: str, policy: Policy) -> bool:
    """Whether `retry_on` names this failure, by the script's exit code or by its last lines.

    A script that ran out of memory would do so again. But a script may report that, use less, and fail for another
    reason: then the words that `retry_on` names come after that report.
    """
    # the toolkit's "ExitCode 75"; SageMaker's own "Exit Code: 75", or "…, exit code: 75" behind a framework error
    code = re.search(r"\bexit ?code:? (\d+)", failure, re.IGNORECASE)
    if code and int(code.group(1)) in policy.retry_exit_codes:
        return True
    since = out_of_memory_at(failure) if failure.startswith(f"{OUT_OF_MEMORY}:") else -1
    return any(found.start() > since for pattern in policy.retry_logs for found in re.finditer(pattern, failure))


def back_off(times: int, poll_s: float) -> timedelta:
    """How long to wait before try `times` + 1: doubling from the poll interval, bounded."""
    return timedelta(seconds=min(_BACK_OFF_MAX_S, poll_s * 2 ** min(times - 1, _BACK_OFF_DOUBLINGS_MAX)))


def table() -> str:
    """The rules as the documentation's table of ends, in Markdown."""
    rows = "".join(f"| {rule.ended} | {rule.means} |\n" for rule in RULES)
    return f"| attempt ended with | the trial |\n|---|---|\n{rows}"


def _ended(*ends: AttemptEnd) -> Callable[[EndedAttempt], bool]:
    return lambda ended: ended.attempt.end in ends


def _stopped_for(*reasons: StopReason) -> Callable[[EndedAttempt], bool]:
    return lambda ended: ended.stopped_for(*reasons)


def _completed(ended: EndedAttempt) -> bool:
    return ended.attempt.end is AttemptEnd.COMPLETED


def _faults_used_up(ended: EndedAttempt) -> bool:
    return ended.is_fault and ended.trial.faults + 1 > ended.policy.max_faults


def _last_fault(ended: EndedAttempt) -> str:
    reason = ended.fault_reason
    hint = "; again and again, it may be the image that does not start" if reason.startswith(_INTERNAL) else ""
    return f"{reason} (after {ended.policy.max_faults} retried faults{hint})"


def _script_failed(ended: EndedAttempt) -> bool:
    """On its own, and `retry_on` does not name it."""
    own = ended.attempt.end is AttemptEnd.SCRIPT_ERROR and ended.attempt.stop_reason is None
    return own and not ended.is_fault


def _out_of_memory(ended: EndedAttempt) -> bool:
    return _script_failed(ended) and (ended.attempt.reason or "").startswith(f"{OUT_OF_MEMORY}:")


def _said(ended: EndedAttempt) -> str:
    return ended.attempt.reason or str(ended.attempt.end)


def _stop_reason(ended: EndedAttempt) -> str:
    return str(ended.attempt.stop_reason)


def _at_once(ended: EndedAttempt) -> datetime:
    return ended.now


def _later(ended: EndedAttempt) -> datetime:
    return ended.now + back_off(ended.attempt.number, ended.policy.poll_s)


def _after_fault(ended: EndedAttempt) -> datetime:
    return ended.now + back_off(ended.trial.faults + 1, ended.policy.poll_s)


RULES: tuple[EndRule, ...] = (
    # the trial has its result, or the user or the pruner wants none
    EndRule(
        name="cancelled",
        ended="any end, after `tuner cancel`",
        means="cancelled",
        applies=lambda ended: ended.attempt.stop_reason is StopReason.CANCEL,
        event=TrialEvent.CANCEL,
        reason=lambda _: "cancelled",
    ),
    EndRule(
        name="no metric",
        ended="`completed`, no metric",
        means="failed, reason `no_metric`",
        applies=lambda ended: _completed(ended) and not ended.has_value,
        event=TrialEvent.FAIL,
        reason=lambda _: "no_metric",
    ),
    EndRule(
        name="reached its rung",
        ended="`completed`, metric there, stopped to pause",
        means="paused at its rung",
        applies=lambda ended: _completed(ended) and ended.attempt.stop_reason is StopReason.PAUSE,
        event=TrialEvent.PAUSE,
    ),
    EndRule(
        name="completed",
        ended="`completed`, metric there",
        means="succeeded, also while it was being stopped for any other reason",
        applies=_completed,
        event=TrialEvent.SUCCEED,
    ),
    EndRule(
        name="verdict of the pruner",
        ended="any other end, after the pruner decided",
        means="pruned: the verdict is stored",
        applies=lambda ended: ended.trial.pruned_at_step is not None,
        event=TrialEvent.PRUNE,
        reason=lambda ended: f"pruned at step {ended.trial.pruned_at_step}",
    ),
    EndRule(
        name="max_run",
        ended="`max_run`",
        means="failed, reason `max_run`",
        applies=_ended(AttemptEnd.MAX_RUN),
        event=TrialEvent.FAIL,
        reason=lambda _: "max_run",
    ),
    EndRule(
        name="stopped to prune",
        ended="`stopped` by the pruner",
        means="pruned",
        applies=_stopped_for(StopReason.PRUNE),
        event=TrialEvent.PRUNE,
        reason=lambda _: "pruned",
    ),
    EndRule(
        name="stopped to pause",
        ended="`stopped` to pause",
        means="paused",
        applies=_stopped_for(StopReason.PAUSE),
        event=TrialEvent.PAUSE,
    ),
    EndRule(
        name="stopped without progress",
        ended="`stopped`: three whole runs without a newer checkpoint or from zero, and it may not go on demand",
        means="failed, reason `no_progress`",
        applies=_stopped_for(StopReason.NO_PROGRESS),
        event=TrialEvent.FAIL,
        reason=_stop_reason,
    ),
    EndRule(
        name="out of memory",
        ended="`script_error`, out of memory",
        means="failed, reason `out_of_memory: …`; tried again only if `retry_on` names its exit code, or words that"
        " came after it",
        applies=_out_of_memory,
        event=TrialEvent.FAIL,
        reason=_said,
    ),
    EndRule(
        name="script error",
        ended="`script_error`",
        means="failed, with the script's last lines; the next trials run anyway, so rehearse first",
        applies=_script_failed,
        event=TrialEvent.FAIL,
        reason=_said,
    ),
    EndRule(
        name="rejected",
        ended="`rejected`",
        means="failed, with the service's words; after three equal refusals in a row nothing new is begun until"
        " somebody has mended the cause and resumed",
        applies=_ended(AttemptEnd.REJECTED),
        event=TrialEvent.FAIL,
        reason=_said,
    ),
    EndRule(
        name="faults used up",
        ended="`service_fault`, stalled, or `script_error` named by `retry_on`: more than `max_faults` of these",
        means="failed, with the last reason",
        applies=_faults_used_up,
        event=TrialEvent.FAIL,
        reason=_last_fault,
    ),
    # it would go on, but a limit ends it
    EndRule(
        name="max_run used up",
        ended="any end below, `max_run` used up by all attempts together",
        means="failed, reason `max_run`; attempt n is sent only what the attempts before it left, and the engine stops"
        " a job that the service lets run on",
        applies=lambda ended: budget.max_run_left_s(ended.attempts, ended.policy) < 1,
        event=TrialEvent.FAIL,
        reason=lambda _: "max_run",
    ),
    EndRule(
        name="per-trial budget used up",
        ended="any end below, or waiting for the next attempt: final figures reach the per-trial budget (nine tenths"
        " of it if it was stopped for it)",
        means="failed, reason `trial_budget`",
        applies=lambda ended: budget.has_cost_its_limit(ended.attempts, ended.policy),
        event=TrialEvent.FAIL,
        reason=lambda _: str(StopReason.TRIAL_BUDGET),
        while_waiting=True,
    ),
    EndRule(
        name="no progress",
        ended="any end below: three whole runs without a newer checkpoint or from zero, and it may not go on demand"
        " from spot (`capacity.on_demand_after`)",
        means="failed, reason `no_progress`",
        applies=lambda ended: ended.no_progress and not ended.may_go_on_demand,
        event=TrialEvent.FAIL,
        reason=lambda _: str(StopReason.NO_PROGRESS),
    ),
    # it goes on
    EndRule(
        name="stopped by the user",
        ended="`stopped` by `tuner stop`",
        means="backs off without a deadline, until `resume`",
        applies=_stopped_for(StopReason.USER),
        event=TrialEvent.BACK_OFF,
        reason=lambda _: "the study was stopped",
    ),
    EndRule(
        name="stopped to move",
        ended="`stopped`, to move",
        means="backs off, then the next attempt at once, in another pool or on demand, with the same prefix",
        applies=_stopped_for(StopReason.MOVE),
        event=TrialEvent.BACK_OFF,
        reason=_stop_reason,
        due_at=_at_once,
    ),
    EndRule(
        name="stopped for a limit",
        ended="`stopped` at the deadline, or because the job passed its `max_run`",
        means="backs off, resumable",
        applies=_stopped_for(StopReason.LIMIT),
        event=TrialEvent.BACK_OFF,
        reason=_stop_reason,
        due_at=_at_once,
    ),
    EndRule(
        name="stopped for its budget",
        ended="`stopped`, per-trial budget",
        means="backs off, then the next attempt at once: its final figures are below nine tenths of the limit",
        applies=_stopped_for(StopReason.TRIAL_BUDGET),
        event=TrialEvent.BACK_OFF,
        reason=_stop_reason,
        due_at=_at_once,
    ),
    EndRule(
        name="fault",
        ended="`service_fault`, `stopped` because it stalled, or `script_error` named by `retry_on`",
        means="backs off, then the next attempt; at most `max_faults` of these",
        applies=lambda ended: ended.is_fault,
        event=TrialEvent.BACK_OFF,
        reason=lambda ended: ended.fault_reason,
        due_at=_after_fault,
    ),
    EndRule(
        name="capacity",
        ended="`max_wait`, `capacity`",
        means="backs off, then the next attempt with the same prefix; never limited by a count of failures",
        applies=_ended(AttemptEnd.MAX_WAIT, AttemptEnd.CAPACITY),
        event=TrialEvent.BACK_OFF,
        reason=lambda ended: str(ended.attempt.end),
        due_at=_later,
    ),
    EndRule(
        name="stopped from outside",
        ended="`stopped` from outside",
        means="backs off, then the next attempt",
        applies=_ended(AttemptEnd.STOPPED),
        event=TrialEvent.BACK_OFF,
        reason=lambda _: "stopped from outside",
        due_at=_later,
    ),
    EndRule(
        name="foreign job",
        ended="`foreign`: the job name was taken",
        means="nothing was submitted; the next number is used",
        applies=_ended(AttemptEnd.FOREIGN),
        event=TrialEvent.BACK_OFF,
        reason=lambda _: "the job name was taken by a foreign job",
        due_at=_at_once,
    ),
)


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201 - the command that regenerates the table of the documentation
