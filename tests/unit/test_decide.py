"""The brain on cases: reading histories, and what an ended attempt means for its trial, row by row."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.core import decide
from tuner.core.decide import Policy, Verdict, absorb, account, after_end, end_of
from tuner.core.jobs import HistoryRow, JobStatus, Observation
from tuner.core.records import Attempt, AttemptEnd, AttemptState, StopReason, Trial, TrialState
from tuner.core.states import TrialEvent

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def history(*rows):
    """Rows of (status, started at); each ends where the next begins."""
    ends = [started for _, started in rows[1:]]
    return tuple(
        HistoryRow(status=status, started_at=at(started), ended_at=at(end) if end is not None else None)
        for (status, started), end in zip(rows, [*ends, None], strict=True)
    )


def policy(**changes):
    base = Policy(
        trials=10,
        parallel=2,
        max_run_s=3600,
        max_wait_s=7200,
        max_faults=2,
        poll_s=30.0,
        stop_within_s=300.0,
        stop_grace_s=120.0,
        upload_allowance_s=300.0,
        spot=True,
        instance_types=("ml.a.large", "ml.b.large"),
        instance_count=1,
        rates_microusd_per_h=(1_000_000, 2_000_000),
    )
    return replace(base, **changes)


def trial(**changes):
    base = Trial(
        number=0,
        state=TrialState.RUNNING,
        version=0,
        params={},
        distributions="{}",
        attrs={},
        prefix="s3://bucket/key/00000/",
        bundle_uri="s3://bucket/bundles/b/",
        asked_seq=1,
        created_at=NOW,
    )
    return replace(base, **changes)


def attempt(**changes):
    base = Attempt(
        trial=0,
        number=1,
        state=AttemptState.ENDED,
        version=0,
        job_name="key-00000-001",
        digest="d",
        instance_type="ml.a.large",
        instance_count=1,
        spot=True,
        rate_microusd_per_h=1_000_000,
        max_run_s=3600,
        max_wait_s=7200,
        reserved_microusd=0,
        created_at=NOW,
    )
    return replace(base, **changes)


def seen(status, rows, **changes):
    base = Observation(
        name="key-00000-001",
        arn="arn",
        status=status,
        secondary=rows[-1].status,
        history=rows,
        created_at=NOW,
        modified_at=rows[-1].started_at,
    )
    return replace(base, **changes)


# --- the table "attempt ended with", one row a case

E = AttemptEnd
TABLE = [
    (E.COMPLETED, None, True, TrialEvent.SUCCEED, None),
    (E.COMPLETED, StopReason.PRUNE, True, TrialEvent.SUCCEED, None),
    (E.COMPLETED, StopReason.USER, True, TrialEvent.SUCCEED, None),
    (E.COMPLETED, StopReason.CANCEL, True, TrialEvent.CANCEL, "cancelled"),
    (E.COMPLETED, StopReason.PAUSE, True, TrialEvent.PAUSE, None),
    (E.COMPLETED, None, False, TrialEvent.FAIL, "no_metric"),
    (E.MAX_WAIT, None, True, TrialEvent.BACK_OFF, "max_wait"),
    (E.CAPACITY, None, True, TrialEvent.BACK_OFF, "capacity"),
    (E.SERVICE_FAULT, None, True, TrialEvent.BACK_OFF, "the reason"),
    (E.SCRIPT_ERROR, None, True, TrialEvent.FAIL, "the reason"),
    (E.REJECTED, None, False, TrialEvent.FAIL, "the reason"),
    (E.MAX_RUN, None, True, TrialEvent.FAIL, "max_run"),
    (E.STOPPED, StopReason.PRUNE, True, TrialEvent.PRUNE, "pruned"),
    (E.STOPPED, StopReason.PAUSE, True, TrialEvent.PAUSE, None),
    (E.STOPPED, StopReason.MOVE, True, TrialEvent.BACK_OFF, "move"),
    (E.STOPPED, StopReason.LIMIT, True, TrialEvent.BACK_OFF, "limit"),
    (E.STOPPED, StopReason.USER, True, TrialEvent.BACK_OFF, "the study was stopped"),
    (E.STOPPED, StopReason.CANCEL, True, TrialEvent.CANCEL, "cancelled"),
    (E.STOPPED, StopReason.STALL, True, TrialEvent.BACK_OFF, "stall"),
    (E.STOPPED, StopReason.TRIAL_BUDGET, True, TrialEvent.BACK_OFF, "trial_budget"),
    (E.STOPPED, StopReason.NO_PROGRESS, True, TrialEvent.FAIL, "no_progress"),
    (E.STOPPED, None, True, TrialEvent.BACK_OFF, "stopped from outside"),
    (E.FOREIGN, None, False, TrialEvent.BACK_OFF, "the job name was taken by a foreign job"),
]


@pytest.mark.parametrize(("end", "stop", "has_value", "event", "reason"), TABLE)
def test_what_an_ended_attempt_means_for_its_trial(end, stop, has_value, event, reason):
    ended = attempt(end=end, stop_reason=stop, reason="the reason")
    verdict = after_end(trial(), ended, policy(), NOW, has_value=has_value)
    assert (verdict.event, verdict.reason) == (event, reason)


@pytest.mark.parametrize(
    ("limit", "stop", "final", "reached"),
    [
        (None, StopReason.TRIAL_BUDGET, 10**9, False),
        (1000, None, 999, False),
        (1000, None, 1000, True),
        (1000, StopReason.TRIAL_BUDGET, 899, False),  # stopped for what it might have cost
        (1000, StopReason.TRIAL_BUDGET, 900, True),  # hardly worth another start
    ],
)
def test_only_what_a_trial_did_cost_ends_it(limit, stop, final, reached):
    attempts = [attempt(spend_microusd=400), attempt(spend_microusd=final - 400, stop_reason=stop)]
    assert decide.has_cost_its_limit(attempts, policy(trial_budget_microusd=limit)) is reached


@pytest.mark.parametrize(
    ("spot", "billable_s", "training_s", "told"),
    [
        (True, 35, 100, 0.35),
        (True, None, None, None),
        (True, 20, 59, None),  # rounding
        (True, 100, 100, None),  # what is booked where the figures were lost
        (False, 100, 100, None),
    ],
)
def test_which_ended_attempts_tell_what_spot_costs(spot, billable_s, training_s, told):
    assert decide.spot_ratio(spot, billable_s, training_s) == told


def test_every_end_and_every_stop_reason_stands_in_the_table():
    assert {row[0] for row in TABLE} == set(AttemptEnd)
    assert {row[1] for row in TABLE} == {None, *StopReason}


def test_only_the_users_stop_waits_without_a_deadline():
    def due(**changes):
        return after_end(trial(), attempt(end=E.STOPPED, **changes), policy(), NOW, has_value=True).due_at

    assert due(stop_reason=StopReason.USER) is None
    assert due(stop_reason=StopReason.LIMIT) == NOW
    assert due(stop_reason=None) == NOW + timedelta(seconds=30)


@pytest.mark.parametrize("end", [E.MAX_WAIT, E.CAPACITY])
def test_capacity_is_never_a_fault(end):
    verdict = after_end(trial(faults=99), attempt(end=end, number=50), policy(), NOW, has_value=True)
    assert verdict.event is TrialEvent.BACK_OFF
    assert not verdict.fault


def test_faults_are_counted_and_bounded():
    fault = attempt(end=E.SERVICE_FAULT, reason="InternalServerError")
    assert after_end(trial(faults=1), fault, policy(), NOW, has_value=False).fault
    last = after_end(trial(faults=2), fault, policy(), NOW, has_value=False)
    assert last.event is TrialEvent.FAIL


@pytest.mark.parametrize("end", [E.MAX_WAIT, E.CAPACITY, E.STOPPED, E.SERVICE_FAULT, E.SCRIPT_ERROR])
def test_a_stored_verdict_holds_however_the_job_ended(end):
    pruned = trial(pruned_at_step=4)
    verdict = after_end(pruned, attempt(end=end, reason="x"), policy(), NOW, has_value=True)
    assert verdict == Verdict(TrialEvent.PRUNE, "pruned at step 4")


def test_a_script_that_dies_of_our_sigterm_has_not_failed():
    ended = attempt(end=E.SCRIPT_ERROR, stop_reason=StopReason.USER, reason="ExitCode 143")
    assert after_end(trial(), ended, policy(), NOW, has_value=True).event is TrialEvent.BACK_OFF


@pytest.mark.parametrize(
    ("failure", "retried"),
    [
        ("AlgorithmError: ExecuteUserScriptError: ExitCode 75\n…", True),
        ("AlgorithmError: ExecuteUserScriptError: ExitCode 7\n…", False),
        ("AlgorithmError: NCCL watchdog", True),
        ("AlgorithmError: ValueError", False),
    ],
)
def test_retry_on_names_exit_codes_and_words(failure, retried):
    rules = policy(retry_exit_codes=frozenset({75}), retry_logs=("NCCL|ECC",))
    assert decide.retryable(failure, rules) is retried


def test_back_off_doubles_and_is_bounded():
    waits = [decide.back_off(n, 30.0).total_seconds() for n in range(1, 40)]
    assert waits[:3] == [30.0, 60.0, 120.0]
    assert max(waits) == waits[-1] == 600.0


# --- histories


def test_an_interrupted_history_in_figures():
    rows = history(
        ("Starting", 0), ("Downloading", 60), ("Training", 70), ("Interrupted", 170), ("Starting", 180),
        ("Downloading", 300), ("Training", 310), ("Uploading", 510), ("Completed", 520),
    )  # fmt: skip
    figures = account(rows, at(520))
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
    figures = account(rows, at(520))
    assert figures.run_s == 110 + 200
    assert figures.billed_s == 110 + 200 + 20
    assert figures.upload_s == 20
    assert figures.startup_s == 60 + 10 + 130
    assert (figures.interruptions, figures.restarts) == (1, 0)


def test_a_job_of_which_nothing_is_known_is_not_billed():
    assert account(history(("Never seen", 0)), at(100)).billed_s == 0


def test_max_run_counts_from_the_first_downloading_of_a_run():
    assert account(history(("Starting", 0), ("Downloading", 10), ("Training", 40)), at(100)).run_s == 90


def test_the_documented_history_without_a_second_starting():
    rows = history(
        ("Starting", 0), ("Downloading", 5), ("Training", 10), ("Interrupted", 20), ("Downloading", 30),
        ("Training", 40), ("Stopping", 50), ("MaxWaitTimeExceeded", 60),
    )  # fmt: skip
    figures = account(rows, at(60))
    assert (figures.interruptions, figures.restarts) == (1, 0)
    assert end_of(seen(JobStatus.STOPPED, rows)) == (E.MAX_WAIT, None)


def test_two_training_rows_in_a_row_are_one_run():
    """SageMaker shows Training while the image downloads, and again when it has."""
    figures = account(history(("Starting", 0), ("Training", 5), ("Training", 60)), at(100))
    assert [span.started_at for span in figures.spans] == [at(5)]


@pytest.mark.parametrize("status", ["Starting", "Pending", "Downloading", "Restarting"])
def test_preparing_after_training_is_a_restart(status):
    rows = history(("Starting", 0), ("Training", 5), (status, 60), ("Training", 90))
    figures = account(rows, at(100))
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


# --- limits


def test_an_allowance_covers_all_that_may_pass_before_the_bill_ends():
    seconds = 3600 + 30 + 300 + 120 + 300
    assert decide.reservation_microusd(3600, 1_000_000, policy()) == -(-seconds * 1_000_000 // 3600)
