"""Seconds and limits, from rows of a history written by hand."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.local.billing import Limits, billable_seconds, limit_at, training_seconds, up_segments
from tuner.local.jobdir import Row


def rows(text):
    """`Starting 0, Training 5` as rows."""
    return [Row(status, float(at)) for status, at in (part.split() for part in text.split(","))]


@pytest.mark.parametrize(
    ("history", "training_s"),
    [
        ("Starting 0, Downloading 10, Training 12, Uploading 100, Completed 103", 93),
        ("Starting 0, Training 10, Interrupted 50, Starting 60, Training 90, Uploading 95, Completed 96", 46),
        ("Starting 0, Training 10, Interrupted 50, Training 60, Stopping 70, MaxWaitTimeExceeded 75", 55),
        ("Starting 0, Training 10, Stopping 20, Stopped 140", 130),
        ("Starting 0, Training 10, Interrupted 20, Starting 30, Stopping 40, MaxWaitTimeExceeded 41", 10),
        ("Starting 0, Stopping 40, MaxWaitTimeExceeded 41", None),
        ("Starting 0, Training 10, Failed 10.2", 1),
    ],
)
def test_an_instance_is_paid_while_it_is_up(history, training_s):
    assert training_seconds(rows(history)) == training_s


@pytest.mark.parametrize(
    ("training_s", "saving", "billable_s"), [(500, 0.8, 100), (100, 0, 100), (1, 0.7, 1), (None, 0.5, None)]
)
def test_the_saving_is_in_the_billable_seconds(training_s, saving, billable_s):
    assert billable_seconds(training_s, saving) == billable_s


def limit(history, *, max_run_s=100.0, max_wait_s=None, each_run=False):
    return limit_at(rows(history), Limits(max_run_s, max_wait_s, each_run))


def test_max_run_counts_all_runs_or_each_of_them():
    history = "Starting 0, Training 10, Interrupted 50, Starting 60, Downloading 70, Training 72"
    assert limit(history) == (130, "max_run")
    assert limit(history, each_run=True) == (170, "max_run")


def test_max_wait_counts_waiting_and_running_together():
    assert limit("Starting 5", max_wait_s=100) == (105, "max_wait")
    assert limit("Starting 5, Training 50", max_wait_s=100) == (105, "max_wait")
    assert limit("Starting 5, Training 50", max_run_s=20, max_wait_s=100) == (70, "max_run")


def test_a_job_that_waits_without_a_max_wait_has_no_limit():
    assert limit("Starting 0")[0] == float("inf")


@given(
    st.lists(st.sampled_from(["Starting", "Downloading", "Training", "Uploading", "Interrupted"]), min_size=1),
    st.randoms(),
)
def test_segments_never_overlap_and_add_up_to_the_time_in_up_states(statuses, source):
    times = list(itertools.accumulate(source.uniform(0, 9) for _ in statuses))
    history = [Row(status, at) for status, at in zip(statuses, times, strict=True)]
    until = times[-1] + 1
    segments = up_segments(history, until)
    assert all(before[1] < after[0] or before[1] <= after[0] for before, after in itertools.pairwise(segments))
    naive = sum(
        end - row.at
        for row, end in zip(history, [*times[1:], until], strict=True)
        if row.status in {"Downloading", "Training", "Uploading"}
    )
    assert sum(end - start for start, end in segments) == pytest.approx(naive)
