"""The brain, pure: what is recorded + what was observed + now + policy -> what is to be written.

Rules: no clock, no database, no cloud. An observation carries the job's whole status history; everything that is
counted (interruptions, restarts, runs, seconds) is computed from the whole of it each time, so a missed poll changes
nothing; events are made for the rows that were not applied before. What an ended attempt means for its trial is one
function, `after_end`, row by row the table of the README.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise

from tuner.core.events import EventKind
from tuner.core.jobs import OUT_OF_MEMORY, HistoryRow, JobStatus, Observation, classify_failure, out_of_memory_at
from tuner.core.records import Attempt, AttemptEnd, AttemptState, Json, RunEnd, Span, StopReason, Trial
from tuner.core.states import ATTEMPT_TABLE, AttemptEvent, TrialEvent, next_attempt_state

_PREPARING = frozenset({"Starting", "Pending", "Restarting", "LaunchingMLInstances", "PreparingTrainingStack"})
_DOWNLOADING = frozenset({"Downloading", "DownloadingTrainingImage"})
_FINAL = frozenset({"Completed", "Failed", "Stopped", "MaxRuntimeExceeded", "MaxWaitTimeExceeded"})
_BILLED = _DOWNLOADING | {"Training", "Uploading", "Stopping"}

_INTERNAL = "InternalServerError"
# Back-off doubles from the poll interval to this: a whole pool is often away for minutes (median 20 to 60).
_BACK_OFF_MAX_S = 600.0
_BACK_OFF_DOUBLINGS_MAX = 10
# Of a trial's limit: what is left over is hardly worth the start of another job.
_LIMIT_REACHED = 0.9
# Seconds of training after which a bill tells the discount: rounding is nothing beside it.
DISCOUNT_TOLD_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the study file says that decisions need."""

    trials: int
    parallel: int
    max_run_s: int
    max_wait_s: int | None
    max_faults: int
    poll_s: float
    stop_within_s: float
    stop_grace_s: float
    upload_allowance_s: float
    spot: bool
    instance_types: tuple[str, ...]
    instance_count: int
    rates_microusd_per_h: tuple[int, ...]  # of the instance types
    budget_microusd: int | None = None
    trial_budget_microusd: int | None = None
    deadline_at: datetime | None = None
    stall_after_s: float | None = None
    retry_exit_codes: frozenset[int] = frozenset()
    retry_logs: tuple[str, ...] = ()
    on_demand_after: int | None = None  # losses of a trial; None: never
    zones: tuple[str | None, ...] = (None,)  # in order of preference; (None,): SageMaker chooses

    @property
    def pools(self) -> int:
        """How many a spot job can choose from."""
        return len(self.instance_types) * len(self.zones)

    def rate_microusd_per_h(self, instance_type: str) -> int:
        """Of a listed instance type, spot and on-demand alike: the discount is in the billed seconds."""
        return self.rates_microusd_per_h[self.instance_types.index(instance_type)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDraft:
    """An event before it has its number."""

    kind: EventKind
    happened_at: datetime
    before: str | None = None
    after: str | None = None
    details: dict[str, Json] = field(default_factory=dict)


# --- reading a history ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A history in figures."""

    interruptions: int
    restarts: int
    spans: tuple[Span, ...]
    run_s: float  # counts against max_run: from a run's first Downloading or Training row to its end
    startup_s: float
    upload_s: float
    billed_s: float  # instance-up seconds so far: an estimate of TrainingTimeInSeconds


def read_rows(history: Sequence[HistoryRow]) -> Iterator[tuple[HistoryRow, AttemptEvent | None]]:
    """Each row with the event it means; None: known without one, or not foreseen (see `foreseen`)."""
    trained = False
    for row in history:
        event = _event_of(row.status, trained)
        yield row, event
        trained = event is AttemptEvent.TRAIN or (
            trained and event not in (AttemptEvent.INTERRUPT, AttemptEvent.RESTART)
        )


def foreseen(status: str) -> bool:
    """Whether the table of statuses knows this one."""
    return status in _PREPARING | _BILLED | _FINAL | {"Interrupted"}


def _event_of(status: str, trained: bool) -> AttemptEvent | None:  # noqa: FBT001 - private
    if status in _PREPARING or status in _DOWNLOADING:
        return AttemptEvent.RESTART if trained else AttemptEvent.WAIT
    if status in _FINAL:
        return AttemptEvent.END
    return {
        "Training": AttemptEvent.TRAIN,
        "Interrupted": AttemptEvent.INTERRUPT,
        "Stopping": AttemptEvent.STOP,
    }.get(status)


def account(history: Sequence[HistoryRow], until: datetime) -> Account:
    """Figures of a whole history; a row that has not ended lasts to the next row, the last one to `until`."""
    events = [event for _, event in read_rows(history)]
    up = _spans(history, _DOWNLOADING | {"Training"})
    rows = _understood(history)
    return Account(
        interruptions=events.count(AttemptEvent.INTERRUPT),
        restarts=events.count(AttemptEvent.RESTART),
        spans=tuple(_spans(history, frozenset({"Training"}))),
        run_s=sum(max(0.0, ((span.ended_at or until) - span.started_at).total_seconds()) for span in up),
        # after an interruption a job may wait in that row itself
        startup_s=_seconds_in(rows, _PREPARING | _DOWNLOADING | {"Interrupted"}, until),
        upload_s=_seconds_in(rows, frozenset({"Uploading"}), until),
        billed_s=_seconds_in(rows, _BILLED, until),
    )


def _understood(history: Sequence[HistoryRow]) -> list[HistoryRow]:
    """The rows, but one that is not foreseen goes on with the status before it: what was up still is, and is billed."""
    rows: list[HistoryRow] = []
    for row in history:
        known = foreseen(row.status) or not rows
        rows.append(row if known else replace(row, status=rows[-1].status))
    return rows


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether instances of a job are up, and since when that is so."""

    up: bool
    since: datetime


def presence(seen: Observation) -> Presence:
    """As a job's history tells it."""
    spans = _spans(seen.history, _DOWNLOADING | {"Training"})
    if not spans:
        return Presence(up=False, since=seen.created_at)
    ended_at = spans[-1].ended_at
    return Presence(up=True, since=spans[-1].started_at) if ended_at is None else Presence(up=False, since=ended_at)


def _spans(history: Sequence[HistoryRow], opening: frozenset[str]) -> list[Span]:
    """Stretches from the first row of `opening` to an interruption, a restart, the upload or the end.

    `Stopping` closes nothing: the script runs on until its grace is over.
    """
    closing = {
        AttemptEvent.INTERRUPT: RunEnd.INTERRUPTED,
        AttemptEvent.RESTART: RunEnd.RESTARTED,
        AttemptEvent.END: RunEnd.ENDED,
    }
    spans: list[Span] = []
    since: datetime | None = None
    for row, event in read_rows(history):
        end = RunEnd.ENDED if row.status == "Uploading" else closing.get(event) if event else None
        if end is not None and since is not None:
            spans.append(Span(since, row.started_at, end))
            since = None
        if row.status in opening:
            since = since or row.started_at
    return spans if since is None else [*spans, Span(since, None, None)]


def _seconds_in(history: Sequence[HistoryRow], statuses: frozenset[str], until: datetime) -> float:
    ends = [row.ended_at or after.started_at for row, after in pairwise(history)]
    ends += [history[-1].ended_at or until] if history else []
    return sum(
        max(0.0, (ended_at - row.started_at).total_seconds())
        for row, ended_at in zip(history, ends, strict=True)
        if row.status in statuses
    )


# --- an observation of an attempt -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Absorbed:
    attempt: Attempt
    spans: tuple[Span, ...]
    events: tuple[EventDraft, ...]


def absorb(attempt: Attempt, seen: Observation, now: datetime, *, billed_ratio: float) -> Absorbed:
    """Apply the rows of a job's history that were not applied before; end the attempt once its status is final.

    `billed_ratio` is what the estimate takes billed over training time to be: `LiveStudy.billed_ratio`. Money is not
    final here: whoever ends the attempt books its bill.
    """
    history = _consumable(seen)
    events: list[EventDraft] = []
    state = attempt.state
    for row, event in list(read_rows(history))[attempt.history_rows :]:
        details: dict[str, Json] = {"status": row.status, "message": row.message}
        after = None if event is None else ATTEMPT_TABLE[state].get(event)
        if event is None or after is None:
            # what the table does not have is the cloud's affair: recorded, and nothing changes
            known = event is None and foreseen(row.status)
            kind = EventKind.HISTORY if known else EventKind.UNFORESEEN
            events.append(EventDraft(kind=kind, happened_at=row.started_at, details=details))
            continue
        kind = EventKind(f"attempt.{event}") if after is not state else EventKind.HISTORY
        events.append(EventDraft(kind=kind, happened_at=row.started_at, before=state, after=after, details=details))
        state = after
    if seen.status.final and state is not AttemptState.ENDED:
        # the status is the truth even where the history lacks its row
        after = next_attempt_state(state, AttemptEvent.END)
        events.append(EventDraft(kind=EventKind.ATTEMPT_END, happened_at=seen.modified_at, before=state, after=after))
        state = after
    figures = account(history, seen.modified_at if seen.status.final else now)
    estimate = figures.billed_s * attempt.instance_count * attempt.rate_microusd_per_h * billed_ratio / 3600
    changed = replace(
        attempt,
        state=state,
        arn=seen.arn,
        submitted_at=seen.created_at,  # the service's own moment, whatever our clock said
        history_rows=len(history),
        observed_at=now,
        interruptions=figures.interruptions,
        restarts=figures.restarts,
        run_s=figures.run_s,
        startup_s=figures.startup_s,
        upload_s=figures.upload_s,
        estimated_microusd=round(estimate),
        model_uri=seen.model_uri or attempt.model_uri,
    )
    return Absorbed(changed, figures.spans, tuple(events))


def _consumable(seen: Observation) -> Sequence[HistoryRow]:
    """The history without a final row that came before the final status: the end needs its figures."""
    if seen.status.final:
        return seen.history
    return [row for row in seen.history if row.status not in _FINAL]


def end_of(seen: Observation) -> tuple[AttemptEnd, str | None]:
    """How a job with a final status ended, and the service's or the script's own words for it."""
    if seen.status is JobStatus.COMPLETED:
        return AttemptEnd.COMPLETED, None
    if seen.status is JobStatus.FAILED:
        end, reason = classify_failure(seen.failure), seen.failure or "the service gave no reason"
        if end is AttemptEnd.SCRIPT_ERROR and out_of_memory_at(reason) >= 0:
            reason = f"{OUT_OF_MEMORY}: {reason}"
        return end, reason
    last = {seen.secondary, seen.history[-1].status if seen.history else ""}
    if "MaxWaitTimeExceeded" in last:
        return AttemptEnd.MAX_WAIT, None
    if "MaxRuntimeExceeded" in last:
        return AttemptEnd.MAX_RUN, None
    return AttemptEnd.STOPPED, None


# --- what an ended attempt means for its trial ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a trial. `due_at` is meant only for `back_off`; None: it waits for `resume`."""

    event: TrialEvent
    reason: str | None = None
    due_at: datetime | None = None
    fault: bool = False  # counts to max_faults


def after_end(trial: Trial, attempt: Attempt, policy: Policy, now: datetime, *, has_value: bool) -> Verdict:
    """What the end of `attempt` means for its trial; the table of section "Lifecycle" in the README."""
    if attempt.stop_reason is StopReason.CANCEL:
        return Verdict(TrialEvent.CANCEL, "cancelled")
    if attempt.end is AttemptEnd.COMPLETED:
        if not has_value:
            return Verdict(TrialEvent.FAIL, "no_metric")
        if attempt.stop_reason is StopReason.PAUSE:
            return Verdict(TrialEvent.PAUSE)
        return Verdict(TrialEvent.SUCCEED)
    if trial.pruned_at_step is not None:
        # however the job ended: the verdict is stored, and nobody would train this trial further
        return Verdict(TrialEvent.PRUNE, f"pruned at step {trial.pruned_at_step}")
    if attempt.end is AttemptEnd.MAX_RUN:
        return Verdict(TrialEvent.FAIL, "max_run")
    if attempt.stop_reason is not None and attempt.end in (AttemptEnd.STOPPED, AttemptEnd.SCRIPT_ERROR):
        # a script that fails while it is being stopped fails because of SIGTERM
        return _after_stop(attempt.stop_reason, trial, policy, now)
    return _after_own_end(trial, attempt, policy, now)


def _after_stop(why: StopReason, trial: Trial, policy: Policy, now: datetime) -> Verdict:
    if why is StopReason.PRUNE:
        return Verdict(TrialEvent.PRUNE, "pruned")
    if why is StopReason.PAUSE:
        return Verdict(TrialEvent.PAUSE)
    if why is StopReason.USER:
        return Verdict(TrialEvent.BACK_OFF, "the study was stopped")
    if why in (StopReason.MOVE, StopReason.LIMIT):
        return Verdict(TrialEvent.BACK_OFF, str(why), due_at=now)
    if why is StopReason.STALL:
        return _fault(trial, policy, now, "stall")
    if why is StopReason.TRIAL_BUDGET:
        # it was stopped for what it might cost; whether it goes on is said by what it did: `has_cost_its_limit`
        return Verdict(TrialEvent.BACK_OFF, str(why), due_at=now)
    return Verdict(TrialEvent.FAIL, str(why))  # no_progress


def _after_own_end(trial: Trial, attempt: Attempt, policy: Policy, now: datetime) -> Verdict:
    match attempt.end:
        case AttemptEnd.MAX_WAIT | AttemptEnd.CAPACITY | AttemptEnd.STOPPED:
            why = "stopped from outside" if attempt.end is AttemptEnd.STOPPED else str(attempt.end)
            return Verdict(TrialEvent.BACK_OFF, why, due_at=now + back_off(attempt.number, policy.poll_s))
        case AttemptEnd.FOREIGN:
            return Verdict(TrialEvent.BACK_OFF, "the job name was taken by a foreign job", due_at=now)
        case AttemptEnd.SERVICE_FAULT:
            return _fault(trial, policy, now, attempt.reason or "service_fault")
        case AttemptEnd.SCRIPT_ERROR if retryable(attempt.reason or "", policy):
            return _fault(trial, policy, now, attempt.reason or "script_error")
        case AttemptEnd.SCRIPT_ERROR | AttemptEnd.REJECTED:
            return Verdict(TrialEvent.FAIL, attempt.reason or str(attempt.end))
        case _:
            raise AssertionError(f"attempt {attempt.job_name} ended as {attempt.end}, which no rule covers")


def _fault(trial: Trial, policy: Policy, now: datetime, reason: str) -> Verdict:
    if trial.faults + 1 > policy.max_faults:
        hint = "; again and again, it may be the image that does not start" if reason.startswith(_INTERNAL) else ""
        said = f"{reason} (after {policy.max_faults} retried faults{hint})"
        return Verdict(TrialEvent.FAIL, said, fault=True)
    return Verdict(TrialEvent.BACK_OFF, reason, due_at=now + back_off(trial.faults + 1, policy.poll_s), fault=True)


def retryable(failure: str, policy: Policy) -> bool:
    """Whether `retry_on` names this failure, by the script's exit code or by its last lines.

    What ran out of memory would again. But a script may say so, take less, and fail of something else: then what
    `retry_on` names comes after those words.
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


# --- limits -----------------------------------------------------------------------------------------------------


def max_run_left_s(attempts: Sequence[Attempt], policy: Policy) -> int:
    """Seconds of training that a trial may still use, over all its attempts; at most 0 when used up."""
    return int(policy.max_run_s - sum(attempt.run_s for attempt in attempts))


def final_microusd(attempts: Sequence[Attempt]) -> int:
    """What the attempts of a trial that have ended did cost."""
    return sum(attempt.spend_microusd or 0 for attempt in attempts)


def has_cost_its_limit(attempts: Sequence[Attempt], policy: Policy) -> bool:
    """Whether a trial without a job gets no other one, for what its attempts did cost.

    Stopped at its limit it was for what it might have cost. So it goes on while enough is left for more than a start.
    """
    limit = policy.trial_budget_microusd
    if limit is None or not attempts:
        return False
    enough = _LIMIT_REACHED if attempts[-1].stop_reason is StopReason.TRIAL_BUDGET else 1.0
    return final_microusd(attempts) >= enough * limit


def reservation_microusd(run_s: float, rate_microusd_per_h: int, policy: Policy) -> int:
    """The most that an attempt may bill: what it may run, and what may pass before it is stopped and uploaded."""
    seconds = run_s + policy.poll_s + policy.stop_within_s + policy.stop_grace_s + policy.upload_allowance_s
    return -int(-seconds * policy.instance_count * rate_microusd_per_h // 3600)


def spot_ratio(spot: bool, billable_s: int | None, training_s: int | None) -> float | None:  # noqa: FBT001 - a column
    """Billed over training time of an ended attempt, where that tells what spot costs.

    Equal figures tell nothing: they are what is booked where the service lost them. Nor does a job that was not billed.
    """
    if not spot or not billable_s or training_s is None:
        return None
    return billable_s / training_s if DISCOUNT_TOLD_S <= training_s > billable_s else None


def dearest_s(attempt: Attempt, now: datetime) -> int:
    """The most that a job can have billed whose figures are gone: it may have run on since it was last seen.

    It is never more than the attempt reserves.
    """
    unseen_s = max(0.0, (now - (attempt.observed_at or attempt.created_at)).total_seconds())
    reserved_s = attempt.reserved_microusd * 3600 // (attempt.instance_count * attempt.rate_microusd_per_h)
    return min(reserved_s, math.ceil(attempt.run_s + attempt.upload_s + unseen_s))
