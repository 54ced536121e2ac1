"""The output of jobs on AWS, from CloudWatch Logs: attempt by attempt, restart by restart.

SageMaker writes each host of each start of a job to a stream of its own, `JOB/algo-HOST-EPOCH` in one group, so that a
restart opens new streams. They are read stream by stream: the call that searches a group is limited to 5 a second for
a whole account and is for people.

Rules: memory is bounded, whatever a script printed: one page of each host at a time, ordered by time. A page may be
empty with more behind it: only a token that stays the same is the end. A throttled call waits, and is made again. A
stream goes on growing for minutes after the next start of its host opened a newer one: the agent delivers late, and the
last lines before an interruption are those that explain it. What lies further back is read to its end once.
"""

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from tuner.aws.connections import Aws, AwsError, ask
from tuner.core.clock import Clock

GROUP = "/aws/sagemaker/TrainingJobs"

_STREAM = re.compile(r".+/algo-(\d+)-(\d+)")
_PAGE_EVENTS = 1_000
_TAIL_PAGE_MAX = 10_000  # CloudWatch's own limit of a page
_FOLLOW_POLL_S = 5.0
# So long after a newer stream was seen is an older one read again. Nobody says how late lines may be.
_LATE = timedelta(minutes=5)
_THROTTLED = frozenset(("ThrottlingException", "LimitExceededException", "ServiceUnavailableException"))
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True, order=True)
class _Stream:
    """Ordered as its job was started."""

    epoch: int
    host: int
    name: str


@dataclass(frozen=True, slots=True)
class _Line:
    at_ms: int
    host: int
    text: str


class CloudLogs:
    """The output of some jobs. `jobs` says their names, oldest first, and whether more may come."""

    def __init__(
        self, aws: Aws, jobs: Callable[[], tuple[Sequence[str], bool]], clock: Clock, *, name_hosts: bool
    ) -> None:
        self._client = aws.client("logs")
        self._jobs = jobs
        self._clock = clock
        self._name_hosts = name_hosts
        self._places: dict[str, str] = {}  # by stream: the token up to which it was read
        self._closed: set[str] = set()  # streams that cannot grow any more, and were read
        self._followed_at: dict[str, datetime] = {}  # by stream: since when a newer one of its host is known

    def read(self, *, tail: int | None, follow: bool) -> Iterator[str]:
        """The lines in chunks. `tail` keeps the last ones of what is there now. Raises AwsError."""
        names, _ = self._jobs()
        if tail is None:
            for name in names:
                yield from self._news(name)
        else:
            yield from map(self._shown, self._tail(names, tail))
        while follow:
            names, more = self._jobs()  # asked before reading, so that the last words are not missed
            self._clock.wait(self._clock.now() + timedelta(seconds=_FOLLOW_POLL_S))
            for name in names[-2:]:  # an attempt that was followed by another may still have lines on their way
                yield from self._news(name)
            if not more:
                return

    # --- forwards

    def _news(self, job: str) -> Iterator[str]:
        """The new lines of a job, by time."""
        streams = self._streams(job)
        full = self._full(streams)
        open_streams = [stream for stream in streams if stream.name not in self._closed]
        parts = [self._forwards(stream, closing=stream.name in full) for stream in open_streams]
        yield from map(self._shown, heapq.merge(*parts, key=attrgetter("at_ms")))

    def _full(self, streams: Sequence[_Stream]) -> set[str]:
        """The streams of a job to which nothing more will be added."""
        now, full = self._clock.now(), set[str]()
        for host in _hosts(streams):
            names = [stream.name for stream in streams if stream.host == host]
            first_look = not any(name in self._places for name in names)
            for back, name in enumerate(reversed(names)):
                if back and now - self._followed_at.setdefault(name, now) >= _LATE:
                    full.add(name)
                if back > 1 and first_look:  # between it and now an instance was started, used and lost
                    full.add(name)
        return full

    def _forwards(self, stream: _Stream, *, closing: bool) -> Iterator[_Line]:
        while True:
            token = self._places.get(stream.name)
            page = self._page(stream, token=token, limit=_PAGE_EVENTS, from_head=True)
            yield from _lines(page, stream)
            self._places[stream.name] = page["nextForwardToken"]
            if page["nextForwardToken"] == token:
                break
        if closing:
            self._closed.add(stream.name)

    # --- backwards

    def _tail(self, names: Sequence[str], count: int) -> list[_Line]:
        """The last lines, newest streams first. Older lines are never requested."""
        found: list[_Line] = []
        for position, name in enumerate(reversed(names)):
            streams = self._streams(name)
            if position > 1 and len(found) >= count:  # following does not read it any more
                break
            wanted = 0 if position and len(found) >= count else count
            for host in _hosts(streams):
                found += self._tail_of_host([each for each in streams if each.host == host], wanted)
        found.sort(key=attrgetter("at_ms"))
        return found[-count:] if count else []

    def _tail_of_host(self, streams: Sequence[_Stream], count: int) -> list[_Line]:
        found: list[_Line] = []
        for back, stream in enumerate(reversed(streams)):
            if back > 1:
                self._closed.add(stream.name)
                if len(found) >= count:
                    continue
            found = [*self._last(stream, count - len(found)), *found]  # also for 0 lines: following goes on from there
        return found

    def _last(self, stream: _Stream, count: int) -> list[_Line]:
        """Read up to `count` lines from the end of a stream; following goes on from there."""
        found: list[_Line] = []
        token: str | None = None
        while True:
            page = self._page(stream, token=token, limit=min(max(count, 1), _TAIL_PAGE_MAX), from_head=False)
            found = [*_lines(page, stream), *found]
            self._places.setdefault(stream.name, page["nextForwardToken"])
            if len(found) >= count or page["nextBackwardToken"] == token:
                return found[-count:] if count else []
            token = page["nextBackwardToken"]

    # --- calls

    def _streams(self, job: str) -> list[_Stream]:
        found: list[_Stream] = []
        query: dict[str, Any] = {"logGroupName": GROUP, "logStreamNamePrefix": f"{job}/"}
        while True:
            try:
                page = self._ask(self._client.describe_log_streams, **query)
            except AwsError as error:
                if error.code == "ResourceNotFoundException":
                    return []  # no job of this account has printed anything yet
                raise
            for each in page.get("logStreams", ()):
                parts = _STREAM.fullmatch(each["logStreamName"])
                if parts is not None:
                    found.append(_Stream(int(parts[2]), int(parts[1]), each["logStreamName"]))
            if not page.get("nextToken"):
                return sorted(found)
            query["nextToken"] = page["nextToken"]

    def _page(self, stream: _Stream, *, token: str | None, limit: int, from_head: bool) -> Any:  # noqa: ANN401 - JSON
        more = {} if token is None else {"nextToken": token}
        return self._ask(
            self._client.get_log_events,
            logGroupName=GROUP,
            logStreamName=stream.name,
            limit=limit,
            startFromHead=from_head,
            **more,
        )

    def _ask(self, call: Callable[..., Any], **parameters: object) -> Any:  # noqa: ANN401 - JSON
        """Make one call; repeat it after a pause if it is throttled."""
        for pause_s in _PAUSES_S:
            try:
                return ask(call, **parameters)
            except AwsError as error:
                if error.code not in _THROTTLED:
                    raise
                self._clock.wait(self._clock.now() + timedelta(seconds=pause_s))
        return ask(call, **parameters)

    def _shown(self, line: _Line) -> str:
        return f"[algo-{line.host}] {line.text}\n" if self._name_hosts else f"{line.text}\n"


def _hosts(streams: Sequence[_Stream]) -> list[int]:
    return sorted({stream.host for stream in streams})


def _lines(page: Any, stream: _Stream) -> Iterator[_Line]:  # noqa: ANN401 - JSON
    for event in page["events"]:
        yield _Line(event["timestamp"], stream.host, event["message"].rstrip("\n"))
