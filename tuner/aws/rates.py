"""Calls of the job service, counted over all engines of an account in a region.

AWS throttles an account, not an engine. So each kind of call has a bucket of tokens in the store (see
`store.account`), and every call takes a token first.

Rules: an engine takes what a tick needs in one short transaction per kind of call, and gives back what it did not use
with the next one; a call that nobody foresaw takes one of its own. Where several engines are at work, none takes more
than its part. Describing what can wait leaves some calls for finding out about a job that a create met. Lists cost a
call a page, are begun only when the pages of the last one are there, and take half of their bucket's rate at most:
others of the account list, too. Pages of one list keep the distance of that rate: a list that is refused in the middle
is begun again, and AWS need not allow the burst that our buckets hold. Otherwise a call without a token raises
`OutOfCalls` at once: only `RetryingJobService` ever waits.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from tuner.core.calls import Call, OutOfCalls
from tuner.core.clock import Clock
from tuner.core.jobs import JobRequest, JobService, JobSummary, Observation, ServiceUnavailable, Throttled
from tuner.core.records import CallRate, Draw, Fact
from tuner.store.store import Store

_T = TypeVar("_T")

# Listing is a quota of AWS that cannot be raised; the others' are not documented: these are safe for all accounts that
# were reported. A burst is what comes together in a poll of half a minute.
RATES: Mapping[Call, CallRate] = {
    Call.CREATE: CallRate(per_s=1.0, burst=30.0),
    Call.DESCRIBE: CallRate(per_s=5.0, burst=150.0),
    Call.LIST: CallRate(per_s=2.0, burst=60.0),
    Call.STOP: CallRate(per_s=2.0, burst=60.0),
}
# What `doctor --first-dollar` found in Service Quotas: {"CreateTrainingJob": calls per second, …}.
RATES_FACT = "probe.rates"
# Calls a second that the user allows, for accounts with other quotas: CreateTrainingJob=3,DescribeTrainingJob=10
RATES_VARIABLE = "TUNER_CALLS"
BACKEND = "sagemaker"

_BURST_S = 30.0
_PER_S_MAX = 1000.0
_LIST_SHARE = 0.5
# Of a full bucket, what observing leaves for finding out about a job that a create or a stop met.
_SPARE = {Call.DESCRIBE: 0.1}
# How long the number of engines is believed.
_COUNTED_S = 60.0
# A caller who waits tries so often, so far apart: a few minutes in all.
_TRIES = 100
_UNANSWERED = 5
_TRY_AGAIN = timedelta(seconds=2)


def scope(account: str, region: str) -> str:
    """What engines share: an account in a region."""
    return f"{account}/{region}"


def rates_within(facts: Iterable[Fact]) -> dict[Call, CallRate]:
    """The calls a second that the user allows, else ours, lowered to the account's own quotas where those are known.

    Quotas never raise them: others in the account call, too. Raises ValueError for a RATES_VARIABLE that says nothing.
    """
    found = next((fact.value for fact in facts if fact.name == RATES_FACT), None)
    quotas = found if isinstance(found, dict) else {}
    wanted = _wanted(os.environ.get(RATES_VARIABLE, ""))
    return {call: wanted.get(call) or _lowered(rate, quotas.get(call)) for call, rate in RATES.items()}


def _lowered(rate: CallRate, quota: object) -> CallRate:
    if not isinstance(quota, int | float) or not 0 < quota < rate.per_s:
        return rate
    return _rate(quota)


def _rate(per_s: float) -> CallRate:
    return CallRate(per_s=per_s, burst=max(1.0, per_s * _BURST_S))


def _wanted(text: str) -> dict[Call, CallRate]:
    found: dict[Call, CallRate] = {}
    for part in text.replace(",", " ").split():
        name, _, number = part.partition("=")
        try:
            call, per_s = Call(name), float(number)
        except ValueError:
            call, per_s = None, 0.0
        if call is None or not 0 < per_s <= _PER_S_MAX:
            known = ", ".join(Call)
            raise ValueError(
                f"{RATES_VARIABLE}: {part!r} is not CALL=NUMBER, calls a second up to {_PER_S_MAX:g} (calls: {known})"
            )
        found[call] = _rate(per_s)
    return found


class SharedCalls:
    """The calls of one engine, or of another user of the job service; see `tuner.core.calls.Calls`."""

    def __init__(self, store: Store, scope: str, clock: Clock, rates: Mapping[Call, CallRate] = RATES) -> None:
        self._store, self._scope, self._clock, self._rates = store, scope, clock, rates
        self._held: defaultdict[Call, int] = defaultdict(int)
        self._dry_at: dict[Call, datetime] = {}
        self._engines = 1
        self._counted_at: datetime | None = None
        self._listed_at: datetime | None = None
        self._paged_at: datetime | None = None
        self._pages = 0  # of the list under way, or the last one
        self._pages_needed = 1

    def may(self, call: Call, wanted: int, *, idle: int = 0) -> int:
        """See `Calls`."""
        if wanted + idle == 0:
            return 0
        spare = int(_SPARE.get(call, 0.0) * self._rates[call].burst)
        given = self._take(call, Draw(wanted=wanted, idle=idle, spare=spare, engines=self._sharing()))
        if given < wanted and not spare:
            self._dry_at[call] = self._clock.now()
        return given

    def may_list(self) -> bool:
        """See `Calls`. The time between two lists follows from what the last one cost."""
        self._pages_needed = max(1, self._pages or self._pages_needed)
        if self._listed_at is not None:
            every_s = self._pages_needed * self._sharing() / (_LIST_SHARE * self._rates[Call.LIST].per_s)
            if _within(self._clock.now() - self._listed_at, every_s):
                return False
        needed = min(self._pages_needed, int(self._rates[Call.LIST].burst))
        if self._take(Call.LIST, Draw(wanted=needed, at_least=needed)) == 0:
            return False
        self._listed_at, self._pages = self._clock.now(), 0
        return True

    def spend(self, call: Call) -> None:
        """One call is about to be made. Raises OutOfCalls."""
        if call is Call.LIST:
            self._pages += 1
        if self._held[call] > 0:
            self._held[call] -= 1
            return
        now, rate = self._clock.now(), self._rates[call]
        dry_at = self._dry_at.get(call)
        dry = dry_at is not None and _within(now - dry_at, 1 / rate.per_s)
        if not dry and self._take(call, Draw(wanted=1)) == 1:
            self._held[call] = 0
            return
        self._dry_at[call] = dry_at if dry and dry_at is not None else now
        if call is Call.LIST:
            self._pages *= 2  # the next one is begun with more in hand
        raise OutOfCalls(f"{call}: the {rate.per_s:g} calls a second of {self._scope} are used up for the moment")

    def page(self) -> None:
        """A page of a list is about to be asked for. Raises OutOfCalls."""
        self.spend(Call.LIST)
        every_s = self._sharing() / self._rates[Call.LIST].per_s
        now = self._clock.now()
        if self._paged_at is not None and _within(now - self._paged_at, every_s):
            due = self._paged_at + timedelta(seconds=every_s)
            self._clock.wait(due, due=due)
        self._paged_at = self._clock.now()

    def _take(self, call: Call, draw: Draw) -> int:
        draw = replace(draw, back=self._held.pop(call, 0))
        given = self._store.take_calls(self._scope, call, self._rates[call], draw, now=self._clock.now())
        self._held[call] = given
        return given

    def _sharing(self) -> int:
        """The number of engines, this one included."""
        now = self._clock.now()
        if self._counted_at is None or not _within(now - self._counted_at, _COUNTED_S):
            self._engines, self._counted_at = max(1, self._store.engines(BACKEND, now)), now
        return self._engines


def _within(passed: timedelta, seconds: float) -> bool:
    """Whether less time has passed. A clock that was set back makes nobody wait."""
    return timedelta(0) <= passed < timedelta(seconds=seconds)


class RateLimited:
    """A job service that takes a token from a bucket before every call."""

    def __init__(self, jobs: JobService, calls: SharedCalls) -> None:
        self._jobs, self._calls = jobs, calls

    def create(self, request: JobRequest) -> str:
        self._calls.spend(Call.CREATE)
        return self._jobs.create(request)

    def describe(self, name: str) -> Observation:
        self._calls.spend(Call.DESCRIBE)
        return self._jobs.describe(name)

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime) -> Iterable[JobSummary]:
        self._calls.page()
        return self._jobs.list_changed(prefix, created_after=created_after, modified_after=modified_after)

    def stop(self, name: str) -> None:
        self._calls.spend(Call.STOP)
        self._jobs.stop(name)


class RetryingJobService:
    """A job service for callers without a next tick (audit, reconciliation): it waits minutes for its turn.

    A call that may be repeated is repeated if no answer came. A job is never created twice.
    """

    def __init__(self, jobs: JobService, clock: Clock) -> None:
        self._jobs, self._clock = jobs, clock

    def create(self, request: JobRequest) -> str:
        return self._in_turn(lambda: self._jobs.create(request), unanswered=1)

    def describe(self, name: str) -> Observation:
        return self._in_turn(lambda: self._jobs.describe(name))

    def list_changed(self, prefix: str, *, created_after: datetime, modified_after: datetime) -> Iterable[JobSummary]:
        return self._in_turn(
            lambda: self._jobs.list_changed(prefix, created_after=created_after, modified_after=modified_after)
        )

    def stop(self, name: str) -> None:
        self._in_turn(lambda: self._jobs.stop(name))

    def _in_turn(self, call: Callable[[], _T], *, unanswered: int = _UNANSWERED) -> _T:
        """`unanswered`: how many calls may stay without an answer."""
        for _ in range(_TRIES - 1):
            try:
                return call()
            except Throttled:
                pass
            except ServiceUnavailable:
                unanswered -= 1
                if unanswered == 0:
                    raise
            now = self._clock.now()
            self._clock.wait(now + _TRY_AGAIN, due=now)
        return call()
