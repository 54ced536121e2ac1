"""Proof of resume: where each run of a trial really started, and what the run before it had lost.

Three sources are joined. The job's history shows when training ran. The bootstrap's record shows what lay under the
prefix when a script started. The metrics show the first step of a run. A run has *resumed* if a checkpoint lay there
and its first step is beyond the trial's first. It has *restarted from zero* if a checkpoint lay there and its first
step is not. Before its first step, nothing is claimed. A complete checkpoint may lie there and not be loaded: a run
that begins with a step reported before that checkpoint was saved started from an older one. Steps are compared only
with steps, and times show which steps came before a checkpoint. A script may number its checkpoints differently from
its reports, and report one step in a hundred.

Rules: pure. Unknown is None, never 0. A run without a record (an image with its own entrypoint, a record that is not
synced yet) counts as neither resumed nor restarted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice

from tuner.core.records import Attempt, AttemptEnd, Run, RunEnd, RunRecord, Span

# After this many whole runs without a newer checkpoint, the next one would be lost as well.
NO_PROGRESS_RUNS_MAX = 3
_EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps that one run reported."""

    first: int
    last: int
    at: dict[int, datetime] = field(default_factory=dict)  # when each was first reported, in that order


def merge_spans(trial: int, attempt: int, spans: Sequence[Span], known: Sequence[Run]) -> list[Run]:
    """The runs of one attempt after its history was read again: new runs appended, ends filled in."""
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
) -> list[Run]:
    """A trial's runs, oldest first, with everything that is known of them now.

    `records` and `steps` are by (attempt, run id).
    """
    proven: list[Run] = []
    reported: list[Steps] = []  # by the runs that are proven
    for run in _joined(runs, records):
        record = records.get((run.attempt, run.run_id or ""))
        if record is None:
            proven.append(run)
            continue
        seen = steps.get((run.attempt, record.run))
        found = _compare(run, record, seen, proven, reported)
        gone_since = _gone_since(found, record, reported)
        if gone_since is not None:
            _count_lost_work(proven, gone_since)
        proven.append(found)
        reported += [] if seen is None else [seen]
    return proven


def went_back(run: Run) -> bool:
    """Whether a run certainly started from an older checkpoint than the newest one that lay there.

    A run that begins with the step of the newest checkpoint may only have evaluated it again.
    """
    known = run.resume_step is not None and run.resumed_from_step is not None
    return known and run.resume_step not in (run.resumed_from_step, run.first_step)


def _joined(runs: Sequence[Run], records: Mapping[tuple[int, str], RunRecord]) -> list[Run]:
    """Give each record to the run during which it was written, or to the next run if it was written between two."""
    joined = list(runs)
    for (attempt, run_id), record in sorted(records.items()):
        for index, run in enumerate(joined):
            mine = run.attempt == attempt and (run.ended_at is None or record.started_at <= run.ended_at)
            if mine and run.run_id in (None, run_id):
                joined[index] = replace(run, run_id=run_id)
                break
    return joined


def _compare(run: Run, record: RunRecord, seen: Steps | None, before: Sequence[Run], reported: Sequence[Steps]) -> Run:
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
        return run  # only the step that it found can be compared, and it is not beyond that
    lasts = [other.last_step for other in before if other.last_step is not None]
    resumed_from = min(run.first_step - 1, max(lasts)) if lasts else None  # at best
    if record.resume_step is not None and not (seen is not None and _began_before(record, seen, reported)):
        resumed_from = record.resume_step
    return replace(run, restarted_from_zero=False, resumed_from_step=resumed_from)


def _began_before(record: RunRecord, seen: Steps, reported: Sequence[Steps]) -> bool:
    """Whether the first step of a run was reported before the checkpoint that it found was saved.

    If that step is the last one reported then, it was either trained again or only evaluated again, as by a script
    that has nothing left to train. The latter is assumed if it took less than half of the time between two reports.
    """
    saved_at = record.resume_saved_at
    if saved_at is None:
        return False
    for run in reversed(reported):
        reports = (each for each in reversed(run.at.items()) if each[1] <= saved_at)
        last = list(islice(reports, 2))
        if last:
            break
    else:
        return False
    (reached, reached_at), one_before = last[0], last[1:]
    if seen.first != reached:
        return seen.first < reached
    took = seen.at[reached] - record.started_at
    return not one_before or took >= (reached_at - one_before[0][1]) / 2


def _gone_since(run: Run, record: RunRecord, reported: Sequence[Steps]) -> datetime | None:
    """The time of the state from which a run started: training since then is done again. None if not known."""
    if run.restarted_from_zero or run.had_checkpoint is False:
        return _EVER
    if run.resumed_from_step is None or run.resumed_from_step == record.resume_step:
        return record.resume_saved_at
    # no manifest names that step: it was reported just before it was saved
    back = ((step, at) for before in reversed(reported) for step, at in reversed(before.at.items()))
    return next((at for step, at in back if step <= run.resumed_from_step), None)


def _count_lost_work(before: list[Run], gone_since: datetime) -> None:
    """Count all training since then as lost, in every run that had some; a larger loss counted earlier stays."""
    for index in reversed(range(len(before))):
        run, is_last = before[index], index == len(before) - 1
        if run.ended_at is None:
            continue
        lost_s = max(0.0, (run.ended_at - max(run.started_at, gone_since)).total_seconds())
        if is_last or lost_s > (run.lost_work_s or 0.0):
            before[index] = replace(run, lost_work_s=lost_s)


def torn_step(record: RunRecord) -> int | None:
    """The step of an incomplete checkpoint that lay there when the script started, and was not used."""
    newest = record.newest_step
    return newest if newest is not None and (record.resume_step is None or record.resume_step < newest) else None


def no_progress(runs: Sequence[Run], attempts: Sequence[Attempt], saved_at: datetime | None) -> bool:
    """Whether a trial trains whole runs without a newer checkpoint; once it went on demand, only runs there count."""
    counted = {each.number for each in attempts if not each.spot} or {each.number for each in attempts}
    taken = {each.number for each in attempts if each.end in (AttemptEnd.MAX_WAIT, AttemptEnd.CAPACITY)}
    mine = [run for run in runs if run.attempt in counted]
    return runs_without_progress(mine, taken, saved_at) >= NO_PROGRESS_RUNS_MAX


def runs_without_progress(runs: Sequence[Run], taken: Collection[int], saved_at: datetime | None) -> int:
    """How many whole runs trained without progress since the last run that had some.

    A run is whole if neither its script nor we ended it: it was interrupted or restarted, or its attempt is one of
    `taken`, which lost their capacity for good. It had no progress if nothing was saved since it began. Without
    manifests any file counts as saved, which proves little. So it also had none if it restarted from zero and no later
    run resumed, or if the next run began no further than it had begun itself.
    """
    count, after = 0, None
    for run in reversed(runs):
        if run.end in (RunEnd.INTERRUPTED, RunEnd.RESTARTED) or _taken(run, taken):
            if not _without_progress(run, after, saved_at):
                break
            count += 1
        if run.restarted_from_zero or run.resumed_from_step is not None:
            after = run
    return count


def _without_progress(run: Run, after: Run | None, saved_at: datetime | None) -> bool:
    """`after` is the next run whose start is known; None if there is none yet."""
    if saved_at is None or run.started_at >= saved_at:
        return True
    went_on = None if after is None else after.resumed_from_step
    if run.restarted_from_zero:
        return went_on is None
    if after is None or run.resumed_from_step is None:
        return False  # what it saved may be usable
    return went_on is None or went_on <= run.resumed_from_step


def _taken(run: Run, taken: Collection[int]) -> bool:
    return run.end is RunEnd.ENDED and run.attempt in taken
