"""Signs of life of a trial in training, and what their absence means: a warning, or a stall.

It exists because what trains in the cloud is seen by its prefix alone. A sync that silently stopped, a script that
hangs and one that never saves look alike from here, and all of them cost money.

Rules: from memory and now. Nothing is said or done while something under the prefix is unread. A warning reads the same
for as long as its cause lasts, so that it is told once. A stop costs work, so a stall is never concluded from what a
container's clock wrote: silence is what passed on the engine's own clock between its looks, and a pause between two
looks (an engine that was away, a bucket that could not be read, a clock that was set) counts as one poll of it.
Work that is not saved is counted over runs: interruptions that come more often than a warning would are what makes it
dear.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from tuner.core.policy.settings import Policy
from tuner.core.records import AttemptState, Fact
from tuner.engine.live_trial import LiveTrial, Silence

# Silence that is worth a word where the study file names no `stall_after`; else half of that is.
_PATIENCE = timedelta(minutes=15)
# What `doctor --first-dollar` found out: {"max": seconds, …}; silence of less than three such delays is usual.
SYNC_FACT = "probe.sync_delay_s"
_SYNCS = 3.0
# Looks that are further apart were not the next ones: nobody can say what passed between them.
_NEXT_LOOK_POLLS = 3
_MARK = "trial "  # how warnings of trials begin; those of the study file begin with a key


def note_silence(trial: LiveTrial, policy: Policy, now: datetime, *, news: bool) -> None:
    """Take note that what lies under the prefix was looked at just now; `news`: there were new lines or records."""
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
    """How late a file was seen to reach the store at most, by what is known of the account; 0 where nothing is."""
    found = [fact.value for fact in facts if fact.name == SYNC_FACT]
    delay_s = found[0].get("max") if found and isinstance(found[0], dict) else None
    return max(0.0, float(delay_s)) if isinstance(delay_s, int | float) else 0.0


def warnings(trials: Iterable[LiveTrial], policy: Policy, now: datetime, sync_delay_s: float = 0.0) -> list[str]:
    """What should be known of trials that train in silence, or without saving what they report.

    Silence is no sign for as long as the account's checkpoint sync is known to take, several times over.
    """
    told = (_warning(trial, policy, now, timedelta(seconds=_SYNCS * sync_delay_s)) for trial in trials)
    return [line for line in told if line is not None]


def replaced(known: Sequence[str], fresh: Sequence[str]) -> tuple[str, ...]:
    """A study's warnings, with those of its trials as they are now."""
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
    # it holds while the job waits as well: else it would be told anew after each interruption
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
    """For how long the trial has trained since then, over all its runs."""
    spans = ((run.ended_at or now) - max(run.started_at, since) for run in trial.runs)
    return sum((max(span, timedelta()) for span in spans), timedelta())


def _last_sign_at(trial: LiveTrial) -> datetime | None:
    """The last sign of life of a job that trains now."""
    attempt = trial.attempt
    if attempt is None or attempt.state is not AttemptState.TRAINING or not trial.runs:
        return None
    signs = (trial.runs[-1].started_at, trial.reported_at, trial.checkpoint_at)
    return max(sign for sign in signs if sign is not None)
