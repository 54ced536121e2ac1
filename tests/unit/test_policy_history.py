"""Histories of jobs in figures, and what they change in an attempt."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import NOW, at, attempt, history, seen

from tuner.core.jobs import JobStatus
from tuner.core.policy.history import absorb, end_of, totals
from tuner.core.records import AttemptEnd, AttemptState

E = AttemptEnd


def test_an_interrupted_history_in_figures():
    rows = history(
        ("Starting", 0), ("Downloading", 60), ("Training", 70), ("Interrupted", 170), ("Starting", 180),
        ("Downloading", 300), ("Training", 310), ("Uploading", 510), ("Completed", 520),
    )  # fmt: skip
    figures = totals(rows, at(520))
    assert figures.interruptions == 1
    assert [(span.started_at, span.ended_at) for span in figures.spans] == [(at(70), at(170)), (at(310), at(510))]
    assert figures.run_s == 110 + 210
    assert figures.upload_s == 10
    # capacity that is waited for in the row of its loss is waited for all the same
    assert figures.startup_s == 60 + 10 + 10 + 120 + 10
    assert figures.billed_s == 110 + 210 + 10


def test_a_status_that_is_not_foreseen_goes_on_with_the_one_before_it():
    """Its instances are up and billed, or are not, as they were. `Updating` is among the values that the API names."""
    rows = history(
        ("Starting", 0), ("Never seen", 5), ("Downloading", 60), ("Training", 70), ("Updating", 100),
        ("Interrupted", 170), ("Never seen", 180), ("Training", 300), ("Never seen", 400), ("Updating", 450),
        ("Uploading", 500), ("Never seen", 510), ("Completed", 520),
    )  # fmt: skip
    figures = totals(rows, at(520))
    assert figures.run_s == 110 + 200
    assert figures.billed_s == 110 + 200 + 20
    assert figures.upload_s == 20
    assert figures.startup_s == 60 + 10 + 130
    assert (figures.interruptions, figures.restarts) == (1, 0)


def test_a_job_of_which_nothing_is_known_is_not_billed():
    assert totals(history(("Never seen", 0)), at(100)).billed_s == 0


def test_max_run_counts_from_the_first_downloading_of_a_run():
    assert totals(history(("Starting", 0), ("Downloading", 10), ("Training", 40)), at(100)).run_s == 90


def test_the_documented_history_without_a_second_starting():
    rows = history(
        ("Starting", 0), ("Downloading", 5), ("Training", 10), ("Interrupted", 20), ("Downloading", 30),
        ("Training", 40), ("Stopping", 50), ("MaxWaitTimeExceeded", 60),
    )  # fmt: skip
    figures = totals(rows, at(60))
    assert (figures.interruptions, figures.restarts) == (1, 0)
    assert end_of(seen(JobStatus.STOPPED, rows)) == (E.MAX_WAIT, None)


def test_two_training_rows_in_a_row_are_one_run():
    """SageMaker shows Training while the image downloads, and again when it has."""
    figures = totals(history(("Starting", 0), ("Training", 5), ("Training", 60)), at(100))
    assert [span.started_at for span in figures.spans] == [at(5)]


@pytest.mark.parametrize("status", ["Starting", "Pending", "Downloading", "Restarting"])
def test_preparing_after_training_is_a_restart(status):
    rows = history(("Starting", 0), ("Training", 5), (status, 60), ("Training", 90))
    figures = totals(rows, at(100))
    assert (figures.interruptions, figures.restarts, len(figures.spans)) == (0, 1, 2)


def test_a_final_row_waits_for_the_final_status():
    """The end needs its figures: a row that shows the end before the status does is left for the next look."""
    rows = history(("Starting", 0), ("Training", 5), ("Uploading", 60), ("Completed", 70))
    early = absorb(attempt(state=AttemptState.WAITING), seen(JobStatus.IN_PROGRESS, rows), NOW, billed_ratio=1.0)
    assert early.attempt.state is AttemptState.TRAINING
    late = absorb(early.attempt, seen(JobStatus.COMPLETED, rows), NOW, billed_ratio=1.0)
    assert late.attempt.state is AttemptState.ENDED
    assert [event.kind for event in late.events] == ["attempt.end"]


def test_a_final_status_without_its_row_still_ends():
    rows = history(("Starting", 0), ("Training", 5))
    absorbed = absorb(attempt(state=AttemptState.SUBMITTING), seen(JobStatus.STOPPED, rows), NOW, billed_ratio=1.0)
    assert absorbed.attempt.state is AttemptState.ENDED


def test_a_row_that_the_table_does_not_have_changes_nothing():
    rows = history(("Starting", 0), ("Training", 5))
    absorbed = absorb(attempt(state=AttemptState.TRAINING), seen(JobStatus.IN_PROGRESS, rows), NOW, billed_ratio=1.0)
    assert absorbed.attempt.state is AttemptState.TRAINING
    assert [event.kind for event in absorbed.events] == ["unforeseen", "history"]


STATUSES = [
    "Starting", "Pending", "Downloading", "Training", "Interrupted", "Restarting", "Updating", "Uploading",
    "Stopping", "Never seen",
]  # fmt: skip


@given(st.lists(st.sampled_from(STATUSES), min_size=1, max_size=12), st.data())
def test_missing_polls_changes_nothing(statuses, data):
    """Looking at every row, or at any of the later ones only, tells the same story."""
    rows = history(*((status, 10 * number) for number, status in enumerate(statuses)))
    start = attempt(state=AttemptState.SUBMITTING)
    looks = [*data.draw(st.lists(st.integers(1, len(rows)), max_size=6).map(sorted)), len(rows)]
    patient, events = start, []
    for look in looks:
        absorbed = absorb(patient, seen(JobStatus.IN_PROGRESS, rows[:look]), at(1000), billed_ratio=1.0)
        patient = absorbed.attempt
        events += absorbed.events
    at_once = absorb(start, seen(JobStatus.IN_PROGRESS, rows), at(1000), billed_ratio=1.0)
    assert replace(patient, observed_at=None) == replace(at_once.attempt, observed_at=None)
    assert tuple(events) == at_once.events
