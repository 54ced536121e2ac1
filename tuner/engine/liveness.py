"""Signs of life of a trial in training, and the warnings about their absence.

A job in the cloud is seen only through its prefix. A sync that silently stopped, a script that hangs and a script that
never saves look the same from here, and all of them cost money.

Rules: nothing is reported while something under the prefix is unread. The text of a warning stays the same as long as
its cause lasts, so that it is reported once. A stop costs work, so silence is measured by the engine's own clock from
read to read, never by what a container's clock wrote. A pause between two reads (an engine that was away, a bucket that
could not be read, a clock that was set) counts as one poll. Unsaved work is counted over all runs, because it is
dearest where interruptions come more often than the warning would. The stop of a silent job is a rule of
`core.policy.stopping`.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from tuner.core.policy.settings import Policy
from tuner.core.records import AttemptState, Fact
from tuner.engine.live_trial import LiveTrial, Silence

# Warn after 15 minutes of silence, or after half of `stall_after` if it is set.
_PATIENCE = timedelta(minutes=15)
# A fact of `doctor --first-dollar`: {"max": seconds, …}. Silence of less than three such delays is normal.
SYNC_FACT = "probe.sync_delay_s"
_SYNCS = 3.0
# Between reads that are further apart than this, the engine was away: the time between them does not count.
_NEXT_LOOK_POLLS = 3
_MARK = "trial "  # how warnings of trials begin; those of the study file begin with a key


def note_silence(trial: LiveTrial, policy: Policy, now: datetime, *, news: bool) -> None:
    """Note that the prefix of a trial was just read; `news`: there were new lines or records."""
    last = trial.silence
    sign = (len(trial.attempts), len(trial.runs), trial.checkpoint_step, trial.checkpoint_at)
    if news or last.looked_at is None or sign != last.sign:
        trial.silence = Silence(now, sign)
        return
    passed_s = max(0.0, (now - last.looked_at).total_seconds())
    if passed_s > _NEXT_LOOK_POLLS * policy.poll_s:
        passed_s = policy.poll_s
    trial.silence = Silence(now, sign, last.lasted_s + passed_s)


def sync_delay_s(facts: Iterable[Fact]) -> float:
    """The longest known delay of a file on its way to the storage, from the facts of the account; 0 if unknown."""
    found = [fact.value for fact in facts if fact.name == SYNC_FACT]
    delay_s = found[0].get("max") if found and isinstance(found[0], dict) else None
    return max(0.0, float(delay_s)) if isinstance(delay_s, int | float) else 0.0


def warnings(trials: Iterable[LiveTrial], policy: Policy, now: datetime, sync_delay_s: float = 0.0) -> list[str]:
    """Warnings about trials that train in silence, or that report steps without saving.

    Silence shorter than a few known delays of the account's checkpoint sync means nothing.
    """
    lines = (_warning(trial, policy, now, timedelta(seconds=_SYNCS * sync_delay_s)) for trial in trials)
    return [line for line in lines if line is not None]


def replaced(known: Sequence[str], fresh: Sequence[str]) -> tuple[str, ...]:
    """A study's warnings with the current ones of its trials."""
    return (*(line for line in known if not line.startswith(_MARK)), *fresh)


def _warning(trial: LiveTrial, policy: Policy, now: datetime, least: timedelta) -> str | None:
    if trial.unread:
        return None
    patience = _PATIENCE if policy.stall_after_s is None else timedelta(seconds=policy.stall_after_s / 2)
    patience = max(patience, least)
    last_sign_at = _last_sign_at(trial)
    if last_sign_at is not None and now - last_sign_at > patience:
        retried = "" if policy.stall_after_s is None else f"; retried after {policy.stall_after_s:.0f} s of silence"
        return (
            f"{_MARK}{trial.record.number}: it trains, but nothing new lies under its prefix since "
            f"{last_sign_at:%H:%M:%S} UTC: its sync has stopped, or its script hangs{retried}"
        )
    if trial.attempt is None or trial.attempt.state is AttemptState.STOPPING or not trial.runs:
        return None
    # it also holds while the job waits: otherwise it would be reported again after each interruption
    began_at = trial.runs[0].started_at
    saved_at = max(began_at, trial.checkpoint_at or began_at)
    reported = trial.reported_at is not None and trial.reported_at > saved_at
    if reported and _trained(trial, saved_at, now) > patience:
        return (
            f"{_MARK}{trial.record.number}: it reports steps, but nothing was saved since {saved_at:%H:%M:%S} UTC: an "
            "interruption would lose that work"
        )
    return None


def _trained(trial: LiveTrial, since: datetime, now: datetime) -> timedelta:
    """How long the trial has trained since then, over all its runs."""
    spans = ((run.ended_at or now) - max(run.started_at, since) for run in trial.runs)
    return sum((max(span, timedelta()) for span in spans), timedelta())


def _last_sign_at(trial: LiveTrial) -> datetime | None:
    """The last sign of life of a job that trains now."""
    attempt = trial.attempt
    if attempt is None or attempt.state is not AttemptState.TRAINING or not trial.runs:
        return None
    signs = (trial.runs[-1].started_at, trial.reported_at, trial.checkpoint_at)
    return max(sign for sign in signs if sign is not None)
