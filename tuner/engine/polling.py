"""Which jobs are described now: those that changed by a list or a hint, and those that were not seen for long.

Calls of describe are scarce: with a thousand jobs in flight, describing all of them would take minutes.

Rules: a changed job stays due until it was described. The job whose last try is longest ago comes first, so that no job
starves and one that cannot be described does not block the others. Hints may be missing, late, repeated and out of
order. While hints announce everything that lists show, lists are made less often, but they never end.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tuner.core.hints import Hint
from tuner.core.jobs import JobSummary
from tuner.core.records import Attempt

# A live job that was not described for this many polls is due: lists may lag, or leave it out.
STALE_POLLS = 10
# At most about this many of those a poll: with many jobs in flight each waits longer.
_STALE_A_POLL = 15
# If no hint announced a change for this long before a list, no hint will.
_HINT_PATIENCE = timedelta(seconds=60)
_LIST_EVERY_MIN_S = 60.0
_LIST_EVERY_MAX_S = 300.0
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def stale_s(in_flight: int, poll_s: float) -> float:
    """After how long a job without any sign of a change is described anyway."""
    return poll_s * max(STALE_POLLS, in_flight / _STALE_A_POLL)


@dataclass
class PollQueue:
    """What was seen and tried, by the names of live jobs."""

    listed_at: datetime | None = None
    skipped: bool = False  # a list was due and not made
    _seen: dict[str, datetime] = field(default_factory=dict)  # which change was described last
    _due: set[str] = field(default_factory=set)
    _asked: dict[str, datetime] = field(default_factory=dict)
    _hinted: set[str] = field(default_factory=set)  # since the last list
    _list_every_s: float = 0.0

    @property
    def behind(self) -> bool:
        """Whether something is left for the next tick."""
        return self.skipped or bool(self._due)

    def hinted(self, hints: Iterable[Hint], live: Collection[str]) -> None:
        """Note hints. Ignore hints about unknown jobs and about changes already described."""
        for hint in hints:
            seen = self._seen.get(hint.name)
            known = seen is not None and hint.modified_at is not None and hint.modified_at <= seen
            if hint.name in live and not known:
                self._due.add(hint.name)
                self._hinted.add(hint.name)

    def list_due(self, now: datetime, *, hints: bool) -> bool:
        """Whether a list may show more than hints did. Without hints: always."""
        if not hints or self.listed_at is None:
            return True
        return abs((now - self.listed_at).total_seconds()) >= self._list_every_s

    def listed(self, jobs: Iterable[JobSummary], live: Collection[str], now: datetime) -> None:
        """Note the changes of a complete list. Lists may lag: changes older than what was seen are ignored."""
        news: dict[str, datetime] = {}
        for job in jobs:
            seen = self._seen.get(job.name)
            if job.name in live and (seen is None or job.modified_at > seen):
                news[job.name] = job.modified_at
        self._weigh_hints(news, now)
        self._due |= news.keys()
        self.listed_at, self.skipped = now, False

    def _weigh_hints(self, news: Mapping[str, datetime], now: datetime) -> None:
        """List less often while that brings nothing, and as often as before once it does."""
        unannounced = news.keys() - self._hinted - self._due
        missed = any(now - news[name] > _HINT_PATIENCE for name in unannounced) or (unannounced and not self._hinted)
        self._list_every_s = 0.0 if missed else min(_LIST_EVERY_MAX_S, max(_LIST_EVERY_MIN_S, 2 * self._list_every_s))
        self._hinted.clear()

    def order(self, live: Mapping[str, Attempt], now: datetime, poll_s: float) -> tuple[list[str], list[str]]:
        """The jobs that have changed, and those not seen for long; in each list the longest untried first."""
        self._due &= live.keys()
        waited = timedelta(seconds=stale_s(len(live), poll_s))
        since = {name: self._last_sign(name, attempt, now) for name, attempt in live.items()}
        stale = [name for name, at in since.items() if name not in self._due and now - at > waited]
        return sorted(self._due, key=lambda name: (since[name], name)), sorted(stale, key=lambda name: since[name])

    def _last_sign(self, name: str, attempt: Attempt, now: datetime) -> datetime:
        """Ignore times in the future: our clock was ahead when they were written, and the job would wait for them."""
        signs = (attempt.observed_at or attempt.submitted_at or attempt.created_at, self._asked.get(name))
        return max((at for at in signs if at is not None and at <= now), default=_LONG_AGO)

    def press(self, name: str) -> None:
        """Make a job due, whether or not it changed."""
        self._due.add(name)

    def asked(self, name: str, now: datetime) -> None:
        """Note that a job is being described, even if that fails."""
        self._asked[name] = now

    def described(self, name: str, modified_at: datetime) -> None:
        """Note that a job was described in its state after this change."""
        self._seen[name] = modified_at
        self._due.discard(name)

    def forget(self, name: str) -> None:
        """Drop a job whose trial has ended."""
        self._seen.pop(name, None)
        self._asked.pop(name, None)
        self._due.discard(name)
        self._hinted.discard(name)
