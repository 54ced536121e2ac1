"""Signs of life of a trial in training, and what their absence means: a warning, a stall, or money into a hole.

It exists because what trains in the cloud is seen by its prefix alone. A sync that silently stopped, a script that
hangs and one that never saves look alike from here, and all of them cost money.

Rules: pure, from memory and now. Nothing is said while something under the prefix is unread. A warning reads the same
for as long as its cause lasts, so that it is told once.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from tuner import proof
from tuner.decide import Policy
from tuner.memory import Work
from tuner.model import AttemptEnd, AttemptState

# So many whole runs without a newer checkpoint, and the next one would be lost as well.
RUNS_FOR_NOTHING_MAX = 3
# Silence that is worth a word where the study file names no `stall_after`; else half of that is.
_PATIENCE = timedelta(minutes=15)
_MARK = "trial "  # how warnings of trials begin; those of the study file begin with a key


def stalled(work: Work, policy: Policy, now: datetime) -> bool:
    """Whether nothing came from a job in training for so long that it is to be stopped and retried."""
    since = _heard_at(work)
    return since is not None and policy.stall_after_s is not None and _passed_s(since, now) > policy.stall_after_s


def fruitless(work: Work) -> bool:
    """Whether the trial trains for nothing: whole runs, and no newer checkpoint."""
    taken = {attempt.number for attempt in work.attempts if attempt.end in (AttemptEnd.MAX_WAIT, AttemptEnd.CAPACITY)}
    return not work.unread and proof.runs_for_nothing(work.runs, taken, work.checkpoint_at) >= RUNS_FOR_NOTHING_MAX


def warnings(works: Iterable[Work], policy: Policy, now: datetime) -> list[str]:
    """What should be known of trials that train in silence, or without saving what they report."""
    told = (_warning(work, policy, now) for work in works)
    return [line for line in told if line is not None]


def replaced(known: Sequence[str], fresh: Sequence[str]) -> tuple[str, ...]:
    """A study's warnings, with those of its trials as they are now."""
    return (*(line for line in known if not line.startswith(_MARK)), *fresh)


def _warning(work: Work, policy: Policy, now: datetime) -> str | None:
    heard_at = _heard_at(work)
    if heard_at is None or work.unread:
        return None
    patience = _PATIENCE if policy.stall_after_s is None else timedelta(seconds=policy.stall_after_s / 2)
    if now - heard_at > patience:
        retried = "" if policy.stall_after_s is None else f"; retried after {policy.stall_after_s:.0f} s of silence"
        return (
            f"{_MARK}{work.trial.number}: it trains, but nothing new lies under its prefix since {heard_at:%H:%M:%S} "
            f"UTC: its sync has stopped, or its script hangs{retried}"
        )
    began_at = work.runs[-1].started_at
    saved_at = max(began_at, work.checkpoint_at or began_at)
    reported = work.heard_at is not None and work.heard_at > saved_at
    if reported and now - saved_at > patience:
        return (
            f"{_MARK}{work.trial.number}: it reports steps, but nothing was saved since {saved_at:%H:%M:%S} UTC: an "
            "interruption would lose that work"
        )
    return None


def _heard_at(work: Work) -> datetime | None:
    """The last sign of life of a job that trains now."""
    attempt = work.attempt
    if attempt is None or attempt.state is not AttemptState.TRAINING or not work.runs:
        return None
    signs = (work.runs[-1].started_at, work.heard_at, work.checkpoint_at)
    return max(sign for sign in signs if sign is not None)


def _passed_s(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()
