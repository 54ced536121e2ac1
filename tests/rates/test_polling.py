"""Which jobs are described, and when lists are made: pure."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests import factories
from tuner.core.hints import Hint
from tuner.engine.polling import STALE_POLLS, PollQueue, stale_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLL_S = 30.0


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def attempt(name: str, at: datetime):
    """A job that trains since then."""
    return factories.attempt(job_name=name, arn=f"arn:{name}", created_at=at, submitted_at=at)


def summary(name: str, modified_at: datetime):
    return factories.job_summary(name, modified_at=modified_at)


def live(*names: str):
    return {name: attempt(name, NOW) for name in names}


def order(queue: PollQueue, jobs, now: datetime = NOW) -> tuple[list[str], list[str]]:
    return queue.order(jobs, now, POLL_S)


def test_what_a_list_shows_as_changed_is_due_until_it_was_described() -> None:
    queue, jobs = PollQueue(), live("a", "b")
    queue.listed([summary("a", later(1)), summary("b", later(1))], jobs, later(5))
    for _ in range(3):
        assert order(queue, jobs, later(5)) == (["a", "b"], [])
        assert queue.behind
    queue.described("a", later(1))
    assert order(queue, jobs, later(5)) == (["b"], [])
    queue.described("b", later(1))
    assert order(queue, jobs, later(5)) == ([], [])
    assert not queue.behind


def test_a_list_that_lags_or_repeats_itself_is_no_news() -> None:
    queue, jobs = PollQueue(), live("a")
    queue.described("a", later(10))
    queue.listed([summary("a", later(10)), summary("a", later(3))], jobs, later(20))
    assert order(queue, jobs) == ([], [])
    queue.listed([summary("a", later(11))], jobs, later(20))
    assert order(queue, jobs) == (["a"], [])


def test_jobs_that_are_not_live_are_of_no_interest() -> None:
    queue, jobs = PollQueue(), live("a")
    queue.listed([summary("gone", later(1))], jobs, later(5))
    queue.hinted([Hint("foreign")], jobs)
    assert not queue.behind
    queue.hinted([Hint("a")], jobs)
    assert order(queue, {}) == ([], [])  # it ended meanwhile
    assert not queue.behind


def test_the_one_whose_last_try_is_longest_ago_comes_first() -> None:
    """Also among those that cannot be described: each try sends a job to the end of the queue."""
    queue = PollQueue()
    jobs = {name: replace(attempt(name, NOW), observed_at=later(n)) for n, name in enumerate("cab")}
    queue.hinted([Hint(name) for name in "abc"], jobs)
    served = []
    for turn in range(6):
        first = order(queue, jobs, later(100 + turn))[0][0]
        queue.asked(first, later(100 + turn))
        served.append(first)
    assert served == ["c", "a", "b", "c", "a", "b"]


def test_a_job_that_nothing_is_heard_of_is_described_all_the_same() -> None:
    queue, jobs = PollQueue(), live("a", "b")
    quiet_s = STALE_POLLS * POLL_S
    assert order(queue, jobs, later(quiet_s)) == ([], [])
    assert order(queue, jobs, later(quiet_s + 1)) == ([], ["a", "b"])
    queue.asked("a", later(quiet_s))
    assert order(queue, jobs, later(quiet_s + 1)) == ([], ["b"])


def test_many_jobs_wait_longer_for_it() -> None:
    assert stale_s(1, POLL_S) == stale_s(150, POLL_S) == 300.0
    assert stale_s(1000, POLL_S) == pytest.approx(2000.0)


def test_a_change_that_was_described_already_is_no_hint() -> None:
    queue, jobs = PollQueue(), live("a")
    queue.described("a", later(10))
    queue.hinted([Hint("a", later(10)), Hint("a", later(4))], jobs)
    assert order(queue, jobs) == ([], [])
    queue.hinted([Hint("a", later(10.5))], jobs)
    assert order(queue, jobs) == (["a"], [])
    queue.described("a", later(10.5))
    queue.hinted([Hint("a")], jobs)  # when, it does not say
    assert order(queue, jobs) == (["a"], [])


# --- how often lists are made


def test_without_hints_a_list_is_always_due() -> None:
    queue, jobs = PollQueue(), live("a")
    for seconds in range(5):
        assert queue.list_due(later(seconds), hints=False)
        queue.listed([], jobs, later(seconds))


def gaps(queue: PollQueue, tell, rounds_made: int) -> list[int]:
    """The polls between lists, when `tell(seconds)` happens before each poll."""
    made, last, seconds = [], 0, 0
    while len(made) < rounds_made:
        shown = tell(seconds)
        if queue.list_due(later(seconds), hints=True):
            queue.listed(shown, live("a"), later(seconds))
            for each in shown:
                queue.described(each.name, each.modified_at)
            made.append(seconds - last)
            last = seconds
        seconds += 30
    return made


def test_lists_that_bring_nothing_become_rarer_but_never_stop() -> None:
    assert gaps(PollQueue(), lambda _: [], 7) == [0, 60, 120, 240, 300, 300, 300]


def test_lists_that_bring_what_hints_did_not_tell_are_made_at_every_poll() -> None:
    def changes_every_poll(seconds: int):
        return [summary("a", later(seconds - 5))]

    assert gaps(PollQueue(), changes_every_poll, 5) == [0, 30, 30, 30, 30]


def test_lists_that_bring_what_hints_told_stay_rare() -> None:
    queue = PollQueue()

    def hinted_changes(seconds: int):
        queue.hinted([Hint("a", later(seconds - 5))], live("a"))
        return [summary("a", later(seconds - 5))]

    assert gaps(queue, hinted_changes, 6) == [0, 60, 120, 240, 300, 300]


def test_a_hint_that_is_on_its_way_is_not_missed() -> None:
    """The list was faster by some seconds: no reason to list more often; a minute later it would be one."""
    for late_s, made in ((20, [60, 120, 240]), (90, [60, 30, 30])):
        queue, jobs = PollQueue(), live("a", "b")
        queue.listed([], jobs, NOW)
        at, seen = 0, []
        for _ in range(3):
            step = next(s for s in range(30, 900, 30) if queue.list_due(later(at + s), hints=True))
            at += step
            seen.append(step)
            queue.hinted([Hint("a", later(at - 1))], jobs)
            queue.listed([summary("b", later(at - late_s))], jobs, later(at))
            queue.described("a", later(at))
            queue.described("b", later(at - late_s))
        assert seen == made


def test_a_clock_that_was_set_back_keeps_no_list_waiting() -> None:
    queue = PollQueue()
    queue.listed([], live("a"), later(7200))
    assert queue.list_due(NOW, hints=True)


def test_a_job_whose_signs_lie_ahead_of_the_clock_is_looked_at_now() -> None:
    """They were written while our clock was hours ahead: without this nobody would look at it for as long."""
    ahead = {"a": attempt("a", later(6 * 3600))}
    queue = PollQueue()
    assert order(queue, ahead) == ([], ["a"])
    queue.asked("a", NOW)
    assert order(queue, ahead, later(POLL_S)) == ([], [])
    assert order(queue, ahead, later((STALE_POLLS + 1) * POLL_S)) == ([], ["a"])
