"""Proof of resume, on cases: what is claimed, and what is not."""

import pytest

from tests import factories
from tests.factories import at
from tuner.core.policy.proof import Steps, prove, went_back
from tuner.core.records import RunEnd


def run(number, started, ended=None, attempt=1):
    ending = {} if ended is None else {"ended_at": at(ended), "end": RunEnd.INTERRUPTED}
    return factories.run(0, attempt, number, started_at=at(started), **ending)


def record(name, started, *, resume=None, saved=None, own=0, attempt=1):
    saved_at = None if saved is None else at(saved)
    return factories.run_record(
        name, attempt=attempt, started_at=at(started), resume_step=resume, resume_saved_at=saved_at, own_files=own
    )


def steps(first, last, began):
    """Steps that were reported one a second, beginning at `began`."""
    return Steps(first, last, {step: at(began + step - first) for step in range(first, last + 1)})


def by_run(*records):
    return {(each.attempt, each.run): each for each in records}


def test_a_resumed_run_with_manifests():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=5, saved=80, own=2))
    first, second = prove(runs, records, {(1, "a"): Steps(1, 6), (1, "b"): Steps(6, 9)})
    assert (first.restarted_from_zero, first.resumed_from_step, first.lost_work_s) == (False, None, 20.0)
    assert (second.restarted_from_zero, second.resumed_from_step) == (False, 5)


def test_nothing_is_claimed_before_the_first_step():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=5, saved=80, own=2))
    second = prove(runs, records, {(1, "a"): Steps(1, 6)})[1]
    assert (second.resume_step, second.resumed_from_step, second.restarted_from_zero) == (5, None, None)


@pytest.mark.parametrize("resume", [5, None])
def test_a_run_that_starts_over_although_something_lay_there(resume):
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=resume, saved=80, own=2))
    first, second = prove(runs, records, {(1, "a"): Steps(1, 6), (1, "b"): Steps(1, 3)})
    assert second.restarted_from_zero is True
    assert second.resumed_from_step is None
    assert first.lost_work_s == 100.0


def test_a_run_without_anything_to_resume_from_has_not_restarted():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201))
    first, second = prove(runs, records, {(1, "a"): Steps(1, 2), (1, "b"): Steps(1, 3)})
    assert (second.had_checkpoint, second.restarted_from_zero) == (False, False)
    assert first.lost_work_s == 100.0


def test_a_script_without_manifests_is_judged_by_its_steps_and_their_times():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, own=1))
    told = {(1, "a"): Steps(1, 6, {5: at(70), 6: at(90)}), (1, "b"): Steps(6, 9, {6: at(230)})}
    first, second = prove(runs, records, told)
    assert second.resumed_from_step == 5
    assert first.lost_work_s == 30.0


def test_a_run_without_a_record_is_neither():
    runs = [run(1, 0, 100), run(2, 200)]
    second = prove(runs, by_run(record("a", 1)), {(1, "a"): Steps(1, 6)})[1]
    assert (second.had_checkpoint, second.resumed_from_step, second.restarted_from_zero) == (None, None, None)


def test_records_find_their_runs_even_when_clocks_differ_a_little():
    """A record that was written just before its run's Training row belongs to that run, not to the one before."""
    runs = [run(1, 0, 100), run(2, 200, 300), run(1, 400, attempt=2)]
    records = by_run(record("a", 1), record("b", 199), record("c", 399, attempt=2))
    assert [each.run_id for each in prove(runs, records, {})] == ["a", "b", "c"]


def test_work_is_lost_once_however_often_the_same_checkpoint_is_used():
    """Run 2 saved nothing: all of it is lost, and what run 1 had lost stays as it was."""
    runs = [run(1, 0, 100), run(2, 200, 250), run(3, 300)]
    records = by_run(
        record("a", 1), record("b", 201, resume=5, saved=80, own=2), record("c", 301, resume=5, saved=80, own=2)
    )
    told = {(1, "a"): Steps(1, 6), (1, "b"): Steps(6, 6), (1, "c"): Steps(6, 9)}
    assert [each.lost_work_s for each in prove(runs, records, told)] == [20.0, 50.0, None]


def test_proving_again_changes_nothing():
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=5, saved=80, own=2))
    told = {(1, "a"): Steps(1, 6), (1, "b"): Steps(6, 9)}
    once = prove(runs, records, told)
    assert prove(once, records, told) == once


@pytest.mark.parametrize(("first", "resumed_from", "restarted"), [(6, 5, False), (1, None, None), (5, None, None)])
def test_a_first_run_from_a_copied_checkpoint_is_believed_only_beyond_its_step(first, resumed_from, restarted):
    """A trial that repeats a failed one begins with its checkpoints, and with no steps of its own."""
    (run_,) = prove([run(1, 0)], by_run(record("a", 1, resume=5, saved=0, own=2)), {(1, "a"): Steps(first, 9)})
    assert (run_.resumed_from_step, run_.restarted_from_zero) == (resumed_from, restarted)


# --- a newest checkpoint that was not used


def test_a_run_that_begins_before_the_newest_checkpoint_did_not_resume_from_it():
    """A script that takes its best checkpoint: step 2, although step 19 is there, too."""
    runs = [run(1, 0, 40), run(2, 100)]
    records = by_run(record("a", 1), record("b", 101, resume=19, saved=28.5, own=38))
    told = {(1, "a"): steps(1, 19, 10), (1, "b"): steps(3, 9, 110)}
    first, second = prove(runs, records, told)
    assert (second.resumed_from_step, second.restarted_from_zero, went_back(second)) == (2, False, True)
    assert first.lost_work_s == 40 - 11  # step 2 was reported after 11 seconds
    assert prove([first, second], records, told) == [first, second]


def test_what_is_trained_a_third_time_was_lost_twice():
    """Run 3 goes back behind run 2: what run 1 had trained since is lost as well, and none of it counts twice."""
    runs = [run(1, 0, 40), run(2, 100, 140), run(3, 200)]
    records = by_run(record("a", 1), record("b", 101, resume=19, saved=28.5), record("c", 201, resume=30, saved=121.5))
    told = {(1, "a"): steps(1, 20, 10), (1, "b"): steps(20, 31, 110), (1, "c"): steps(3, 30, 210)}
    assert [each.lost_work_s for each in prove(runs, records, told)] == [40 - 11, 40, None]
    told[1, "c"] = steps(31, 40, 210)
    assert [each.lost_work_s for each in prove(runs, records, told)] == [11.5, 18.5, None]


def test_work_before_a_restart_from_zero_is_lost_in_every_run():
    runs = [run(1, 0, 40), run(2, 100, 140), run(3, 200)]
    records = by_run(record("a", 1), record("b", 101, resume=19, saved=28.5), record("c", 201, resume=30, saved=121.5))
    told = {(1, "a"): steps(1, 20, 10), (1, "b"): steps(20, 31, 110), (1, "c"): steps(1, 30, 210)}
    assert [each.lost_work_s for each in prove(runs, records, told)] == [40, 40, None]


def test_what_a_later_run_repeats_does_not_date_an_earlier_one_anew():
    runs = [run(1, 0, 40), run(2, 100, 140), run(3, 200)]
    records = by_run(record("a", 1), record("b", 101, own=1), record("c", 201, own=1))
    told = {(1, "a"): steps(1, 20, 10), (1, "b"): steps(6, 20, 110), (1, "c"): steps(3, 20, 210)}
    first, second, third = prove(runs, records, told)
    assert (second.resumed_from_step, third.resumed_from_step) == (5, 2)
    assert (first.lost_work_s, second.lost_work_s) == (40 - 11, 40)


@pytest.mark.parametrize(
    ("resume", "saved", "first", "reported", "resumed_from"),
    [
        (19, 28.5, 20, 115, 19),  # the usual script
        (19, 28.5, 19, 101.2, 19),  # it evaluates the step it resumed from before it goes on
        (20, 29.5, 20, 101.2, 20),  # nothing is left to train: it reports its last step again
        (19, 28.5, 19, 115, 18),  # it trained that step again, or may have: no more is claimed
        (20, 28.5, 19, 101.2, 20),  # it numbers its checkpoints by how many steps were done, and evaluates as well
        (20, 28.5, 20, 115, 20),  # steps are counted from 0, and checkpoints by how many were done
        (19, 28.5, 18, 115, 17),  # the checkpoint before the newest
        (1900, 28.5, 20, 115, 1900),  # checkpoints are numbered by batches, and reports by epochs
        (1900, 28.5, 15, 115, 14),
    ],
)
def test_steps_that_are_reported_again_are_told_from_steps_that_are_done_again(
    resume, saved, first, reported, resumed_from
):
    runs = [run(1, 0, 40), run(2, 100)]
    records = by_run(record("a", 1), record("b", 101, resume=resume, saved=saved))
    told = {(1, "a"): steps(1, 20, 10), (1, "b"): steps(first, 30, reported)}
    second = prove(runs, records, told)[1]
    assert (second.resumed_from_step, second.restarted_from_zero) == (resumed_from, False)
    assert went_back(second) == (first < min(resume, 19))


@pytest.mark.parametrize(("first", "resumed_from"), [(300, 250), (200, 199), (100, None)])
def test_metrics_of_one_step_in_a_hundred(first, resumed_from):
    """Saved at 250, in the middle between two reports."""
    runs = [run(1, 0, 40), run(2, 100)]
    records = by_run(record("a", 1), record("b", 101, resume=250, saved=25))
    told = {(1, "a"): Steps(100, 200, {100: at(10), 200: at(20)}), (1, "b"): Steps(first, first, {first: at(120)})}
    lost, second = prove(runs, records, told)
    assert (second.resumed_from_step, second.restarted_from_zero) == (resumed_from, resumed_from is None)
    assert lost.lost_work_s == {250: 15, 199: 30, None: 40}[resumed_from]


@pytest.mark.parametrize(
    ("took_s", "resumed_from"),
    [
        (4, 5),  # in less than half of the time between two reports: step 5 was evaluated once more
        (5, 4),
        (7, 4),  # step 5 was trained again, from an older checkpoint
        (11, 4),
    ],
)
def test_a_run_that_begins_with_the_saved_step_trained_it_again_if_that_took_half_an_interval(took_s, resumed_from):
    runs = [run(1, 0, 100), run(2, 200)]
    records = by_run(record("a", 1), record("b", 201, resume=5, saved=55, own=2))
    reported = {step: at(10 * step) for step in range(1, 6)}
    seen = {(1, "a"): Steps(1, 5, reported), (1, "b"): Steps(5, 6, {5: at(201 + took_s), 6: at(300)})}
    assert prove(runs, records, seen)[1].resumed_from_step == resumed_from
