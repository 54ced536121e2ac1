"""What a job's history says in figures, and how it changes the attempt.

An observation carries the job's whole status history. Interruptions, restarts, runs and seconds are computed from the
whole of it each time, so a missed poll changes nothing. Events are made for the rows that were not applied before.

Rules: pure. A row that the table of states does not foresee is recorded and changes no state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise

from tuner.core.events import EventDraft, EventKind
from tuner.core.jobs import OUT_OF_MEMORY, HistoryRow, JobStatus, Observation, classify_failure, out_of_memory_at
from tuner.core.records import Attempt, AttemptEnd, AttemptState, Json, RunEnd, Span
from tuner.core.states import ATTEMPT_TABLE, AttemptEvent, next_attempt_state

_PREPARING = frozenset({"Starting", "Pending", "Restarting", "LaunchingMLInstances", "PreparingTrainingStack"})
_DOWNLOADING = frozenset({"Downloading", "DownloadingTrainingImage"})
_FINAL = frozenset({"Completed", "Failed", "Stopped", "MaxRuntimeExceeded", "MaxWaitTimeExceeded"})
_BILLED = _DOWNLOADING | {"Training", "Uploading", "Stopping"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryTotals:
    """A job's history in figures."""

    interruptions: int
    restarts: int
    spans: tuple[Span, ...]
    run_s: float  # counts against max_run: from a run's first Downloading or Training row to its end
    startup_s: float
    upload_s: float
    billed_s: float  # instance-up seconds so far: an estimate of TrainingTimeInSeconds


def read_rows(history: Sequence[HistoryRow]) -> Iterator[tuple[HistoryRow, AttemptEvent | None]]:
    """Each row with its event; None: a known row without an event, or one that is not foreseen (see `foreseen`)."""
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


def totals(history: Sequence[HistoryRow], until: datetime) -> HistoryTotals:
    """Figures of a whole history. A row without an end lasts to the next row, the last one to `until`."""
    events = [event for _, event in read_rows(history)]
    up = _spans(history, _DOWNLOADING | {"Training"})
    rows = _understood(history)
    return HistoryTotals(
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
    """The rows; one that is not foreseen keeps the status before it: its instances stay up and billed, or do not."""
    rows: list[HistoryRow] = []
    for row in history:
        known = foreseen(row.status) or not rows
        rows.append(row if known else replace(row, status=rows[-1].status))
    return rows


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether instances of a job are up, and since when."""

    up: bool
    since: datetime


def presence(seen: Observation) -> Presence:
    """The presence of a job according to its history."""
    spans = _spans(seen.history, _DOWNLOADING | {"Training"})
    if not spans:
        return Presence(up=False, since=seen.created_at)
    ended_at = spans[-1].ended_at
    return Presence(up=True, since=spans[-1].started_at) if ended_at is None else Presence(up=False, since=ended_at)


def _spans(history: Sequence[HistoryRow], opening: frozenset[str]) -> list[Span]:
    """Spans from the first row of `opening` to an interruption, a restart, the upload or the end.

    `Stopping` does not end a span: the script runs on until its grace is over.
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

    `billed_ratio` is the assumed ratio of billed to training time: `budget.billed_ratio`. The cost stays an estimate
    here; the final one is booked when the attempt ends.
    """
    history = _consumable(seen)
    events: list[EventDraft] = []
    state = attempt.state
    for row, event in list(read_rows(history))[attempt.history_rows :]:
        details: dict[str, Json] = {"status": row.status, "message": row.message}
        after = None if event is None else ATTEMPT_TABLE[state].get(event)
        if event is None or after is None:
            # the table does not have this move of the service: it is recorded, and nothing changes
            known = event is None and foreseen(row.status)
            kind = EventKind.HISTORY if known else EventKind.UNFORESEEN
            events.append(EventDraft(kind=kind, happened_at=row.started_at, details=details))
            continue
        kind = EventKind(f"attempt.{event}") if after is not state else EventKind.HISTORY
        events.append(EventDraft(kind=kind, happened_at=row.started_at, before=state, after=after, details=details))
        state = after
    if seen.status.final and state is not AttemptState.ENDED:
        # the status decides even if the history lacks its row
        after = next_attempt_state(state, AttemptEvent.END)
        events.append(EventDraft(kind=EventKind.ATTEMPT_END, happened_at=seen.modified_at, before=state, after=after))
        state = after
    figures = totals(history, seen.modified_at if seen.status.final else now)
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
    """The history without a final row that was shown before the final status: the end needs its figures."""
    if seen.status.final:
        return seen.history
    return [row for row in seen.history if row.status not in _FINAL]


def end_of(seen: Observation) -> tuple[AttemptEnd, str | None]:
    """How a job with a final status ended, and the words of the service or the script about it."""
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
