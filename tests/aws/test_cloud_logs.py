"""Logs of jobs on AWS: across attempts, restarts and hosts, by token, in bounded pages, against moto's Logs."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from aws_account import Account

from tuner.aws import logs as cloud_logs
from tuner.aws.connections import AwsError
from tuner.aws.logs import GROUP, CloudLogs
from tuner.core.clock import VirtualClock

# Recent: CloudWatch takes nothing older than two weeks, and moto keeps to that.
NOW_MS = int(datetime.now(UTC).timestamp() * 1000) - 3_600_000


class Group:
    """The log group, written to as SageMaker does."""

    def __init__(self) -> None:
        self.client = boto3.client("logs")
        self.client.create_log_group(logGroupName=GROUP)

    def stream(self, job: str, host: int, epoch: int, lines: Sequence[str], *, at_s: float = 0.0) -> None:
        name = f"{job}/algo-{host}-{epoch}"
        if not self.client.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=name)["logStreams"]:
            self.client.create_log_stream(logGroupName=GROUP, logStreamName=name)
        self.client.put_log_events(
            logGroupName=GROUP,
            logStreamName=name,
            logEvents=[
                {"timestamp": NOW_MS + int((at_s + 10 * number) * 1000), "message": line}
                for number, line in enumerate(lines)
            ],
        )


@pytest.fixture
def group(account: Account) -> Group:
    return Group()


def logs(
    account: Account,
    jobs: Sequence[str],
    *,
    more: Callable[[], bool] = lambda: False,
    clock: VirtualClock | None = None,
    name_hosts: bool = False,
) -> CloudLogs:
    return CloudLogs(
        account.aws(), lambda: (jobs, more()), clock or VirtualClock(datetime.now(UTC)), name_hosts=name_hosts
    )


def text(reader: CloudLogs, *, tail: int | None = None, follow: bool = False) -> str:
    return "".join(reader.read(tail=tail, follow=follow))


def test_attempts_and_restarts_come_in_order(account: Account, group: Group) -> None:
    group.stream("k-00001-002", 1, 300, ["fifth"], at_s=500)
    group.stream("k-00001-001", 1, 200, ["third", "fourth"], at_s=100)
    group.stream("k-00001-001", 1, 100, ["first", "second"])
    group.stream("k-00001-0011", 1, 100, ["another job's, whose name begins in the same way"])
    assert text(logs(account, ["k-00001-001", "k-00001-002"])) == "first\nsecond\nthird\nfourth\nfifth\n"


def test_hosts_are_named_and_merged_by_time(account: Account, group: Group) -> None:
    group.stream("k-00001-001", 1, 100, ["a", "c"])
    group.stream("k-00001-001", 2, 101, ["b", "d"], at_s=5)
    shown = text(logs(account, ["k-00001-001"], name_hosts=True))
    assert shown == "[algo-1] a\n[algo-2] b\n[algo-1] c\n[algo-2] d\n"


def test_pages_are_read_to_the_last(account: Account, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_logs, "_PAGE_EVENTS", 3)
    lines = [f"line {number}" for number in range(10)]
    group.stream("k-00001-001", 1, 100, lines)
    assert text(logs(account, ["k-00001-001"])).splitlines() == lines
    assert account.calls.count("GetLogEvents") >= 4


@pytest.mark.parametrize(
    ("tail", "said"), [(0, ""), (1, "4\n"), (2, "3\n4\n"), (3, "2\n3\n4\n"), (9, "0\n1\n2\n3\n4\n")]
)
def test_a_tail_is_the_last_lines_of_all(account: Account, group: Group, tail: int, said: str) -> None:
    group.stream("k-00001-001", 1, 100, ["0", "1"])
    group.stream("k-00001-001", 1, 200, ["2"], at_s=100)
    group.stream("k-00001-002", 1, 300, ["3", "4"], at_s=200)
    assert text(logs(account, ["k-00001-001", "k-00001-002"]), tail=tail) == said


def test_a_tail_does_not_read_what_is_older(account: Account, group: Group) -> None:
    for epoch in range(100, 120):
        group.stream("k-00001-001", 1, epoch, ["old"] * 5, at_s=epoch)
    text(logs(account, ["k-00001-001"]), tail=3)
    assert account.calls.count("GetLogEvents") <= 2


def test_a_tail_of_hosts_is_by_time(account: Account, group: Group) -> None:
    group.stream("k-00001-001", 1, 100, ["a", "c", "e"])
    group.stream("k-00001-001", 2, 100, ["b", "d", "f"], at_s=5)
    shown = text(logs(account, ["k-00001-001"], name_hosts=True), tail=3)
    assert shown == "[algo-2] d\n[algo-1] e\n[algo-2] f\n"


def follow(
    account: Account, jobs: list[str], happenings: list[Callable[[], None]], *, each_s: float = 0.0, **given: Any
) -> str:
    """Each wait of the reader lets the next thing happen, so much later; after the last one the trial has ended."""
    clock = VirtualClock(datetime.now(UTC))
    left = iter(happenings)
    ended = False

    def wait(*_: object, **__: object) -> None:
        nonlocal ended
        clock.jump(timedelta(seconds=each_s))
        happening = next(left, None)
        if happening is None:
            ended = True
        else:
            happening()

    clock.wait = wait  # type: ignore[method-assign, assignment]
    return text(logs(account, jobs, more=lambda: not ended, clock=clock), follow=True, **given)


def test_following_shows_what_comes_once_and_the_last_words(account: Account, group: Group) -> None:
    jobs = ["k-00001-001"]

    def next_attempt() -> None:
        jobs.append("k-00001-002")
        group.stream("k-00001-002", 1, 300, ["second attempt"], at_s=300)

    shown = follow(
        account,
        jobs,
        [
            lambda: group.stream("k-00001-001", 1, 100, ["one"]),
            lambda: group.stream("k-00001-001", 1, 100, ["two"], at_s=50),
            lambda: group.stream("k-00001-001", 1, 200, ["restarted"], at_s=100),
            next_attempt,
            lambda: group.stream("k-00001-001", 1, 200, ["late"], at_s=120),
        ],
    )
    assert shown == "one\ntwo\nrestarted\nsecond attempt\nlate\n"


@pytest.mark.parametrize(("tail", "first"), [(0, ""), (1, "old 2\n"), (2, "old 1\nold 2\n")])
def test_following_a_tail_goes_on_behind_it(account: Account, group: Group, tail: int, first: str) -> None:
    group.stream("k-00001-001", 1, 100, ["older"])
    group.stream("k-00001-002", 1, 200, ["old 0", "old 1", "old 2"], at_s=100)
    new = lambda: group.stream("k-00001-002", 1, 200, ["new"], at_s=200)  # noqa: E731
    assert follow(account, ["k-00001-001", "k-00001-002"], [new], tail=tail) == f"{first}new\n"


def test_a_tail_of_several_pages_goes_on_behind_its_end(
    account: Account, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_logs, "_TAIL_PAGE_MAX", 2)
    group.stream("k-00001-001", 1, 100, ["0", "1", "2", "3", "4"])
    new = lambda: group.stream("k-00001-001", 1, 100, ["new"], at_s=200)  # noqa: E731
    assert follow(account, ["k-00001-001"], [new], tail=4) == "1\n2\n3\n4\nnew\n"


def test_a_stream_that_cannot_grow_is_read_once(account: Account, group: Group) -> None:
    for epoch in range(100, 110):
        group.stream("k-00001-001", 1, epoch, ["line"], at_s=epoch)
    nothing = lambda: None  # noqa: E731
    shown = follow(account, ["k-00001-001"], [nothing] * 10)
    assert shown == "line\n" * 10
    # each stream to its end, and at each of 12 more looks the newest one and the one before it
    assert account.calls.count("GetLogEvents") <= 2 * 10 + 2 * 12


@pytest.mark.parametrize("tail", [None, 1, 9])
@pytest.mark.parametrize("host", [1, 2])
def test_the_last_lines_before_an_interruption_come_late_and_are_shown(
    account: Account, group: Group, tail: int | None, host: int
) -> None:
    """They say why it was interrupted, and the agent brings them when the next start already prints."""
    for each in (1, host):
        group.stream("k-00001-001", each, 100, ["step 1"])
        group.stream("k-00001-001", each, 200, ["started again"], at_s=100)
    shown = follow(
        account,
        ["k-00001-001"],
        [
            lambda: group.stream("k-00001-001", host, 100, ["reclaimed"], at_s=50),
            lambda: group.stream("k-00001-001", host, 200, ["step 2"], at_s=120),
            lambda: group.stream("k-00001-001", host, 100, ["last words"], at_s=60),
        ],
        each_s=60,
        tail=tail,
    )
    assert shown.splitlines()[-3:] == ["reclaimed", "step 2", "last words"]
    assert shown.splitlines().count("reclaimed") == 1


def test_the_last_words_of_the_attempt_before_are_shown_behind_a_tail(account: Account, group: Group) -> None:
    group.stream("k-00001-001", 1, 100, ["first"])
    group.stream("k-00001-002", 1, 200, ["second"], at_s=100)
    late = lambda: group.stream("k-00001-001", 1, 100, ["last words"], at_s=50)  # noqa: E731
    assert follow(account, ["k-00001-001", "k-00001-002"], [late], tail=1) == "second\nlast words\n"


def test_a_stream_is_closed_minutes_after_a_newer_one_was_seen(account: Account, group: Group) -> None:
    """Else each restart would cost a call at each look for as long as somebody follows."""
    group.stream("k-00001-001", 1, 100, ["one"])
    restart = lambda: group.stream("k-00001-001", 1, 200, ["two"], at_s=100)  # noqa: E731
    nothing = lambda: None  # noqa: E731
    follow(account, ["k-00001-001"], [restart, *[nothing] * 40], each_s=60)
    # each stream to its end, some 42 looks at the newest one, and minutes of looks at the other
    assert account.calls.count("GetLogEvents") <= 2 + 2 + 42 + 6


def test_a_job_that_printed_nothing_yet_is_empty(account: Account) -> None:
    assert text(logs(account, ["k-00001-001"])) == ""


class Slow(VirtualClock):
    """Counts how long it was waited for."""

    waited_s = 0.0

    def wait(self, until: datetime, *, due: datetime | None = None) -> None:
        self.waited_s += (until - self.now()).total_seconds()
        super().wait(until, due=until)


def throttle(account: Account, times: int) -> Iterator[None]:
    for _ in range(times):
        account.refuse["GetLogEvents"] = ("ThrottlingException", "Rate exceeded")
        yield
    account.refuse.pop("GetLogEvents", None)
    while True:
        yield


def test_a_throttled_call_waits_and_is_made_again(account: Account, group: Group) -> None:
    group.stream("k-00001-001", 1, 100, ["line"])
    clock = Slow(datetime.now(UTC))
    steps = throttle(account, 3)
    next(steps)
    waits = clock.wait

    def wait(until: datetime, *, due: datetime | None = None) -> None:
        waits(until, due=due)
        next(steps)

    clock.wait = wait  # type: ignore[method-assign]
    assert text(logs(account, ["k-00001-001"], clock=clock)) == "line\n"
    assert clock.waited_s == pytest.approx(1 + 2 + 4)


def test_a_refusal_is_an_error_in_one_line(account: Account, group: Group) -> None:
    group.stream("k-00001-001", 1, 100, ["line"])
    account.refuse["GetLogEvents"] = ("AccessDeniedException", "no right to logs:GetLogEvents")
    with pytest.raises(AwsError, match="logs:GetLogEvents") as refused:
        text(logs(account, ["k-00001-001"]))
    assert refused.value.is_about_rights
