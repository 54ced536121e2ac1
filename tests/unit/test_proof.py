"""Proof of resume, on cases: what is claimed, and what is not."""

from datetime import UTC, datetime, timedelta

import pytest

from tuner.model import Run, RunEnd, RunRecord
from tuner.proof import Steps, prove

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def run(number, started, ended=None, attempt=1):
    end = None if ended is None else RunEnd.INTERRUPTED
    return Run(
        trial=0,
        attempt=attempt,
        number=number,
        started_at=at(started),
        ended_at=None if ended is None else at(ended),
        end=end,
    )


def record(name, started, *, resume=None, saved=None, own=0, attempt=1):
    return RunRecord(
        attempt=attempt,
        run=name,
        host="algo-1",
        started_at=at(started),
        resume_step=resume,
        resume_saved_at=None if saved is None else at(saved),
        own_files=own,
    )


def by_run(*records):
    return {(each.attempt, each.run): each for each in records}


def test_a_resumed_run_with_manifests():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=5, saved=80, own=2))
    first, second = prove(runs, records, {(1, "a"): Steps(1, 6), (1, "b"): Steps(6, 9)}, {})
    assert (first.restarted_from_zero, first.resumed_from_step, first.lost_work_s) == (False, None, 20.0)
    assert (second.restarted_from_zero, second.resumed_from_step) == (False, 5)


def test_nothing_is_claimed_before_the_first_step():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=5, saved=80, own=2))
    second = prove(runs, records, {(1, "a"): Steps(1, 6)}, {})[1]
    assert (second.resume_step, second.resumed_from_step, second.restarted_from_zero) == (5, None, None)


@pytest.mark.parametrize("resume", [5, None])
def test_a_run_that_starts_over_although_something_lay_there(resume):
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=resume, saved=80, own=2))
    first, second = prove(runs, records, {(1, "a"): Steps(1, 6), (1, "b"): Steps(1, 3)}, {})
    assert second.restarted_from_zero is True
    assert second.resumed_from_step is None
    assert first.lost_work_s == 100.0


def test_a_run_without_anything_to_resume_from_has_not_restarted():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201))
    first, second = prove(runs, records, {(1, "a"): Steps(1, 2), (1, "b"): Steps(1, 3)}, {})
    assert (second.had_checkpoint, second.restarted_from_zero) == (False, False)
    assert first.lost_work_s == 100.0


def test_a_script_without_manifests_is_judged_by_its_steps_and_their_times():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, own=1))
    steps = {(1, "a"): Steps(1, 6), (1, "b"): Steps(6, 9)}
    first, second = prove(runs, records, steps, {5: at(70)})
    assert second.resumed_from_step == 5
    assert first.lost_work_s == 30.0


def test_a_run_without_a_record_is_neither():
    runs = [run(1, 0, 100), run(2, 200)]
    second = prove(runs, by_run(record("a", 1)), {(1, "a"): Steps(1, 6)}, {})[1]
    assert (second.had_checkpoint, second.resumed_from_step, second.restarted_from_zero) == (None, None, None)


def test_records_find_their_runs_even_when_clocks_differ_a_little():
    """A record that was written just before its run's Training row belongs to that run, not to the one before."""
    runs = [run(1, 0, 100), run(2, 200, 300), run(1, 400, attempt=2)]
    records = by_run(record("a", 1), record("b", 199), record("c", 399, attempt=2))
    assert [each.run_id for each in prove(runs, records, {}, {})] == ["a", "b", "c"]


def test_work_is_lost_once_however_often_the_same_checkpoint_is_used():
    """Run 2 saved nothing: all of it is lost, and what run 1 had lost stays as it was."""
    runs = [run(1, 0, 100), run(2, 200, 250), run(3, 300)]
    records = by_run(
        record("a", 1), record("b", 201, resume=5, saved=80, own=2), record("c", 301, resume=5, saved=80, own=2)
    )
    steps = {(1, "a"): Steps(1, 6), (1, "b"): Steps(6, 6), (1, "c"): Steps(6, 9)}
    assert [each.lost_work_s for each in prove(runs, records, steps, {})] == [20.0, 50.0, None]


def test_proving_again_changes_nothing():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=5, saved=80, own=2))
    steps = {(1, "a"): Steps(1, 6), (1, "b"): Steps(6, 9)}
    once = prove(runs, records, steps, {})
    assert prove(once, records, steps, {}) == once


@pytest.mark.parametrize(("first", "resumed_from", "restarted"), [(6, 5, False), (1, None, None), (5, None, None)])
def test_a_first_run_from_a_copied_checkpoint_is_believed_only_beyond_its_step(first, resumed_from, restarted):
    """A trial that repeats a failed one begins with its checkpoints, and with no steps of its own."""
    (run_,) = prove([run(1, 0)], by_run(record("a", 1, resume=5, saved=0, own=2)), {(1, "a"): Steps(first, 9)}, {})
    assert (run_.resumed_from_step, run_.restarted_from_zero) == (resumed_from, restarted)
