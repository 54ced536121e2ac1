"""Proof of resume: where each run of a trial really started, and what the run before it had lost.

Three sources are joined. The job's history says when training ran. The bootstrap's record says what lay under the
prefix when a script started. The metrics say which step a run reached first. A run has *resumed* when something lay
there and its first step is beyond the trial's first; it has *restarted from zero* when something lay there and its
first step is not. Before its first step, nothing is claimed.

Rules: pure. What is not known is None, never 0: a run without a record (an image with an entrypoint of its own, a
record that has not been synced yet) counts as neither resumed nor restarted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tuner.model import Run, RunEnd, RunRecord, Span


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps that one run reported."""

    first: int
    last: int


def merge_spans(trial: int, attempt: int, spans: Sequence[Span], known: Sequence[Run]) -> list[Run]:
    """The runs of one attempt after its history was read again: new ones appended, ends filled in."""
    merged = []
    for number, span in enumerate(spans, start=1):
        run = known[number - 1] if number <= len(known) else None
        run = run or Run(trial=trial, attempt=attempt, number=number, started_at=span.started_at)
        merged.append(replace(run, ended_at=span.ended_at, end=span.end))
    return merged


def prove(
    runs: Sequence[Run],
    records: Mapping[tuple[int, str], RunRecord],
    steps: Mapping[tuple[int, str], Steps],
    reported_at: Mapping[int, datetime],
) -> list[Run]:
    """A trial's runs, oldest first, with everything that can be said of them now.

    `records` and `steps` are by (attempt, run id); `reported_at` says when each step was reported last before now.
    """
    proven: list[Run] = []
    for run in _joined(runs, records):
        record = records.get((run.attempt, run.run_id or ""))
        if record is None:
            proven.append(run)
            continue
        seen = steps.get((run.attempt, record.run))
        found = _compare(run, record, seen, proven)
        if proven:
            proven[-1] = _with_lost_work(proven[-1], found, record, reported_at)
        proven.append(found)
    return proven


def _joined(runs: Sequence[Run], records: Mapping[tuple[int, str], RunRecord]) -> list[Run]:
    """Give each record to the run during which it was written, or to the next one if it fell between two."""
    joined = list(runs)
    for (attempt, run_id), record in sorted(records.items()):
        for index, run in enumerate(joined):
            mine = run.attempt == attempt and (run.ended_at is None or record.started_at <= run.ended_at)
            if mine and run.run_id in (None, run_id):
                joined[index] = replace(run, run_id=run_id)
                break
    return joined


def _compare(run: Run, record: RunRecord, seen: Steps | None, before: Sequence[Run]) -> Run:
    had_checkpoint = record.resume_step is not None or record.own_files > 0
    run = replace(run, had_checkpoint=had_checkpoint, resume_step=record.resume_step)
    if seen is not None:
        run = replace(run, first_step=seen.first, last_step=seen.last)
    firsts = [other.first_step for other in before if other.first_step is not None]
    if not had_checkpoint:
        return replace(run, restarted_from_zero=False)
    if run.first_step is None or (not firsts and record.resume_step is None):
        return run
    if firsts and run.first_step <= min(firsts):
        return replace(run, restarted_from_zero=True)
    if not firsts and record.resume_step is not None and run.first_step <= record.resume_step:
        return run  # nothing to compare with but the step it found, and it is not beyond that
    lasts = [other.last_step for other in before if other.last_step is not None]
    without_manifest = min(run.first_step - 1, max(lasts)) if lasts else None
    resumed_from = record.resume_step if record.resume_step is not None else without_manifest
    return replace(run, restarted_from_zero=False, resumed_from_step=resumed_from)


def _with_lost_work(previous: Run, run: Run, record: RunRecord, reported_at: Mapping[int, datetime]) -> Run:
    """The training of `previous` that `run` has to do again."""
    if previous.ended_at is None:
        return previous
    whole_s = (previous.ended_at - previous.started_at).total_seconds()
    if run.restarted_from_zero or run.had_checkpoint is False:
        return replace(previous, lost_work_s=whole_s)
    saved_at = record.resume_saved_at
    if saved_at is None and run.resumed_from_step is not None:
        # no manifest: the step was reported just before it was saved
        saved_at = reported_at.get(run.resumed_from_step)
    if saved_at is None:
        return previous
    return replace(previous, lost_work_s=min(whole_s, max(0.0, (previous.ended_at - saved_at).total_seconds())))


def torn_step(record: RunRecord) -> int | None:
    """The step whose checkpoint lay there when the script started, and was passed over since it is not complete."""
    newest = record.newest_step
    return newest if newest is not None and (record.resume_step is None or record.resume_step < newest) else None


def runs_for_nothing(runs: Sequence[Run], taken: Collection[int], saved_at: datetime | None) -> int:
    """How many whole runs have trained for nothing since the last one that got the trial on.

    Whole is a run that neither its script nor we ended: it was interrupted or restarted, or its attempt is one of
    `taken`, whose time to wait for capacity was over. For nothing it was if nothing was saved since it began. That
    something was saved proves little where there are no manifests, since any file counts: so it was for nothing, too,
    if it restarted from zero and no later run resumed, or if the next one began no further than it had itself.
    """
    count, after = 0, None
    for run in reversed(runs):
        if run.end in (RunEnd.INTERRUPTED, RunEnd.RESTARTED) or _taken(run, taken):
            if not _for_nothing(run, after, saved_at):
                break
            count += 1
        if run.restarted_from_zero or run.resumed_from_step is not None:
            after = run
    return count


def _for_nothing(run: Run, after: Run | None, saved_at: datetime | None) -> bool:
    """`after` is the next run of which it is known where it began; None before there is one."""
    if saved_at is None or run.started_at >= saved_at:
        return True
    went_on = None if after is None else after.resumed_from_step
    if run.restarted_from_zero:
        return went_on is None
    if after is None or run.resumed_from_step is None:
        return False  # what it saved may be worth something
    return went_on is None or went_on <= run.resumed_from_step


def _taken(run: Run, taken: Collection[int]) -> bool:
    return run.end is RunEnd.ENDED and run.attempt in taken
