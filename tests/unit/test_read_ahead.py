"""Prefixes that are read ahead: several at once, each line once, and nothing old taken for the last word."""

import threading
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import factories
from tuner.core.records import ProgressReport
from tuner.storage.progress import ReadAhead

EPOCH = datetime.fromtimestamp(0, UTC)


class Lines:
    """A reader of numbers: each prefix has as many as were written, and gives each once."""

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self.given: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.away: set[str] = set()

    def expect(self, prefixes: object) -> None:
        raise AssertionError("only `ReadAhead` begins reads")

    def read(self, prefix: str) -> ProgressReport:
        self.looks[prefix] += 1
        if prefix in self.away:
            raise OSError("the store is away")
        first, end = self.given[prefix], self.written[prefix]  # looked at once: more may be written meanwhile
        self.given[prefix] = end
        return report(*range(first, end))

    def forget(self, prefix: str) -> None:
        del self.given[prefix]


def report(*numbers: int) -> ProgressReport:
    return ProgressReport(points=tuple(factories.metric_point(number) for number in numbers))


def steps(found: ProgressReport) -> list[int | None]:
    return [point.step for point in found.points]


def look_over(ahead: ReadAhead) -> None:
    """Wait for what was begun: a look that no thread has come to yet is taken back, and sees what is there later."""
    for each in ahead._begun.values():
        each.exception()


def test_as_many_as_there_are_threads_are_read_at_once() -> None:
    class Together(Lines):
        met = threading.Barrier(4, timeout=60)

        def read(self, prefix: str) -> ProgressReport:
            self.met.wait()  # nobody goes on before four are here
            return super().read(prefix)

    ahead = ReadAhead(Together(), at_once=4)
    names = [f"p{i}" for i in range(8)]
    ahead.expect(names)
    assert [steps(ahead.read(name)) for name in names] == [[]] * 8


def test_no_more_lie_in_memory_than_are_read_at_once() -> None:
    lines = Lines()
    ahead = ReadAhead(lines, at_once=3)
    ahead.expect(f"p{i}" for i in range(100))
    for i in range(50):
        ahead.read(f"p{i}")
        assert sum(lines.looks.values()) <= i + 1 + 3


def test_an_old_look_is_given_out_and_is_not_the_last_word() -> None:
    lines = Lines()
    ahead = ReadAhead(lines, at_once=1)
    lines.written["a"] = 2
    ahead.expect(["a"])
    look_over(ahead)
    ahead.expect(["a"])  # the next tick; in the one before, nobody came to it
    lines.written["a"] = 3
    first, second = ahead.read("a"), ahead.read("a")
    assert (steps(first), first.more) == ([0, 1], True)
    assert (steps(second), second.more) == ([2], False)


def test_a_failure_is_raised_where_it_is_asked_for_and_not_kept() -> None:
    lines = Lines()
    lines.away = {"a", "b"}
    ahead = ReadAhead(lines, at_once=2)
    ahead.expect("ab")
    look_over(ahead)
    with pytest.raises(OSError, match="away"):
        ahead.read("a")
    lines.away = set()
    lines.written.update("ab")
    ahead.expect("ab")
    assert [steps(ahead.read(prefix)) for prefix in "ab"] == [[0], [0]]


def test_a_trial_that_is_forgotten_while_it_is_read_leaves_nothing() -> None:
    class Slow(Lines):
        begun, go_on = threading.Event(), threading.Event()

        def read(self, prefix: str) -> ProgressReport:
            self.begun.set()
            assert self.go_on.wait(60)
            return super().read(prefix)

    lines = Slow()
    ahead = ReadAhead(lines, at_once=1)
    ahead.expect(["a"])
    assert lines.begun.wait(60)
    threading.Timer(0.05, lines.go_on.set).start()
    ahead.forget("a")
    assert "a" not in lines.given


@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "expect", "read", "away", "back", "forget"]), st.sampled_from("abcd")),
        max_size=40,
    )
)
def test_each_line_comes_once_in_order_whatever_happens(moves: list[tuple[str, str]]) -> None:
    lines = Lines()
    ahead = ReadAhead(lines, at_once=2)
    got: dict[str, list[int | None]] = {prefix: [] for prefix in "abcd"}
    for move, prefix in moves:
        if move == "write":
            lines.written[prefix] += 1
        elif move == "expect":
            ahead.expect("abcd"["abcd".index(prefix) :])
        elif move == "away":
            lines.away.add(prefix)
        elif move == "back":
            lines.away.discard(prefix)
        elif move == "forget":  # a new reader begins at the beginning
            ahead.forget(prefix)
            got[prefix] = []
        else:
            look(ahead, prefix, got)
    lines.away = set()
    ahead.expect("abcd")
    for prefix in "abcd":
        while look(ahead, prefix, got):
            pass
        assert got[prefix] == list(range(lines.written[prefix]))


def look(ahead: ReadAhead, prefix: str, got: dict[str, list[int | None]]) -> bool:
    """Whether there may be more."""
    try:
        found = ahead.read(prefix)
    except OSError:
        return True
    got[prefix] += steps(found)
    return found.more
