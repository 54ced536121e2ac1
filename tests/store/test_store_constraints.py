"""Every constraint is violated once, by a row with no other fault."""

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from store_records import NOW, Bench, attempt, ended, event, point, run, study, succeeded, trial

from tuner.core.records import TrialState
from tuner.store import tables

STUDY: dict[str, dict[str, Any]] = {
    "state": {"state": "napping"},
    "intent": {"intent": "hope"},
    "version_not_negative": {"version": -1},
    "fence_not_negative": {"fence": -1},
    "lease_whole": {"holder_pid": None},
}

TRIAL: dict[str, Any] = {
    "number_not_negative": trial(-1),
    "version_not_negative": trial(version=-1),
    "attempts_not_negative": trial(attempts=-1),
    "faults_not_negative": trial(faults=-1),
    "finished_if_terminal": trial(finished_at=NOW, told_seq=2),
    "told_when_finished": succeeded(told_seq=None),
    "prefix_ends_in_slash": trial(prefix="s3://b/digits/1"),
    "value_of_an_end": trial(values=(1.0,)),
    "success_has_value": replace(succeeded(), values=None),
    "failure_has_reason": replace(succeeded(), state=TrialState.FAILED, values=None),
    "due_while_backing_off": trial(due_at=NOW),
}

ATTEMPT: dict[str, Any] = {
    **{
        f"{name}_not_negative": (ended if name in ("spend_microusd", "on_demand_microusd") else attempt)(**{name: -1})
        for name in (
            *("version", "rate_microusd_per_h", "reserved_microusd", "estimated_microusd", "spend_microusd"),
            *("on_demand_microusd", "refusals", "history_rows", "interruptions", "restarts"),
            *("run_s", "startup_s", "upload_s", "training_s", "billable_s"),
        )
    },
    "number_from_one": attempt(0, 0),
    "instances": attempt(instance_count=0),
    "max_run": attempt(max_run_s=0),
    "spot_has_max_wait": attempt(spot=True, max_wait_s=None),
    "ended_at_if_ended": ended(ended_at=None),
    "end_if_ended": ended(end=None),
    "final_when_ended": attempt(spend_microusd=1, on_demand_microusd=1),
    "finals_together": ended(on_demand_microusd=None),
    "stop_has_reason": attempt(stop_wanted_at=NOW),
    "stop_wanted": attempt(stop_sent_at=NOW),
}

RUN: dict[str, Any] = {
    "lost_work_s_not_negative": run(lost_work_s=-0.5),
    "number_from_one": run(0, 1, 0),
    "end_has_time": run(ended_at=NOW),
    "resumed_or_from_zero": run(resumed_from_step=3, restarted_from_zero=True),
}

# Rows that records cannot express, because of their enumerations or builders, are written in SQL.
SQL = {
    "ck_tuner_trials_state": "UPDATE tuner_trials SET state = 'napping'",
    "ck_tuner_trials_first_value": "UPDATE tuner_trials SET objective_values = '[1]'",
    "ck_tuner_trials_last_value_has_step": "UPDATE tuner_trials SET last_value = 1",
    "ck_tuner_attempts_state": "UPDATE tuner_attempts SET state = 'napping'",
    "ck_tuner_attempts_stop_reason": "UPDATE tuner_attempts SET stop_reason = 'mood', stop_wanted_at = created_at",
    "ck_tuner_attempts_end": "UPDATE tuner_attempts SET \"end\" = 'badly', state = 'ended', ended_at = created_at",
    "ck_tuner_runs_end": "UPDATE tuner_runs SET \"end\" = 'badly', ended_at = started_at",
    "ck_tuner_events_seq_from_one": "UPDATE tuner_events SET seq = 0",
    "ck_tuner_events_attempt_has_trial": "UPDATE tuner_events SET attempt = 1",
    "ck_tuner_requests_verb": "UPDATE tuner_requests SET verb = 'drop'",
    "ck_tuner_buckets_tokens_not_negative": "INSERT INTO tuner_buckets VALUES ('1/r', 'Stop', -1, '2026-01-01')",
}


def violates(desk: Bench, name: str, **parts: Any) -> None:
    with pytest.raises(IntegrityError, match=name):
        desk.write(**parts)


@pytest.mark.parametrize("name", STUDY)
def test_study(desk: Bench, name: str) -> None:
    settings = ", ".join(f"{column} = :{column}" for column in STUDY[name])
    with desk.store._writer.connect() as connection, pytest.raises(IntegrityError, match=f"ck_tuner_studies_{name}"):
        connection.execute(sa.text(f"UPDATE tuner_studies SET {settings}"), STUDY[name])


@pytest.mark.parametrize("name", TRIAL)
def test_trial(desk: Bench, name: str) -> None:
    violates(desk, f"ck_tuner_trials_{name}", new_trials=(TRIAL[name],))


@pytest.mark.parametrize("name", ATTEMPT)
def test_attempt(desk: Bench, name: str) -> None:
    violates(desk, f"ck_tuner_attempts_{name}", new_trials=(trial(),), new_attempts=(ATTEMPT[name],))


@pytest.mark.parametrize("name", RUN)
def test_run(desk: Bench, name: str) -> None:
    violates(desk, f"ck_tuner_runs_{name}", new_trials=(trial(),), new_attempts=(attempt(),), runs=(RUN[name],))


@pytest.mark.parametrize("name", SQL)
def test_by_sql(desk: Bench, name: str) -> None:
    desk.write(new_trials=(trial(),), new_attempts=(attempt(),), runs=(run(),), events=(event(1),))
    desk.store.add_request(desk.study.id, "stop", {}, "ann", NOW)
    with desk.store._writer.connect() as connection, pytest.raises(IntegrityError, match=rf"\b{name}\b"):
        connection.execute(sa.text(SQL[name]))


def test_no_constraint_is_left_out() -> None:
    tried = {f"ck_tuner_studies_{n}" for n in STUDY} | {f"ck_tuner_trials_{n}" for n in TRIAL} | set(SQL)
    tried |= {f"ck_tuner_attempts_{n}" for n in ATTEMPT} | {f"ck_tuner_runs_{n}" for n in RUN}
    there = {
        str(constraint.name)
        for table in tables.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }
    assert tried == there


def _unique(constraint: str, columns: str) -> str:
    """SQLite names the columns, PostgreSQL the constraint."""
    table = constraint.split("_", 1)[1]
    table = next(name for name in tables.metadata.tables if table.startswith(name))
    named = ", ".join(f"{table}.{column}" for column in columns.split(", "))
    return rf'UNIQUE constraint failed: {named}$|UNIQUE constraint failed: {named}\n|unique constraint "{constraint}"'


def test_one_live_attempt_per_trial(desk: Bench) -> None:
    desk.write(new_trials=(trial(0), trial(1)), new_attempts=(ended(0, 1), attempt(0, 2), attempt(1, 1)))
    violates(desk, _unique("ix_tuner_attempts_live", "study_id, trial"), new_attempts=(attempt(0, 3),))


@pytest.mark.parametrize(
    ("constraint", "columns", "parts"),
    [
        ("uq_tuner_trials_prefix", "prefix", {"new_trials": (trial(0, prefix="s3://x/"), trial(1, prefix="s3://x/"))}),
        ("pk_tuner_trials", "study_id, number", {"new_trials": (trial(0), trial(0, prefix="s3://x/"))}),
        (
            "uq_tuner_attempts_job_name",
            "job_name",
            {
                "new_trials": (trial(0), trial(1)),
                "new_attempts": (attempt(0), attempt(1, job_name="k-digits-00000-001")),
            },
        ),
    ],
)
def test_a_duplicate_is_refused(desk: Bench, constraint: str, columns: str, parts: dict[str, Any]) -> None:
    violates(desk, _unique(constraint, columns), **parts)


def test_a_study_key_is_unique(desk: Bench) -> None:
    with pytest.raises(IntegrityError, match=_unique("uq_tuner_studies_key", "key")):
        desk.store.create_study(study("plain", key=desk.study.key))


@pytest.mark.parametrize(
    "parts",
    [{"new_attempts": (attempt(5),)}, {"runs": (run(0, 5),)}, {"points": (point(5),)}],
    ids=lambda p: next(iter(p)),
)
def test_a_row_without_its_parent_is_refused(desk: Bench, parts: dict[str, Any]) -> None:
    violates(desk, "(?i)foreign key", **parts)
