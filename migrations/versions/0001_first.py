"""The first schema.

What a revision says stays as it is once published: it repeats names and lists rather than importing them, since those
in the package go on changing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _utc() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def _one_of(name: str, values: str) -> sa.Enum:
    return sa.Enum(*values.split(), name=name, native_enum=False, create_constraint=True, length=32)


def _not_negative(table: str, columns: str) -> list[sa.CheckConstraint]:
    return [sa.CheckConstraint(f"{c} >= 0", name=op.f(f"ck_{table}_{c}_not_negative")) for c in columns.split()]


def upgrade() -> None:
    _studies()
    _trials()
    _attempts()
    _runs()
    _metrics()
    _events()
    _requests()


def _studies() -> None:
    op.create_table(
        "tuner_studies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column(
            "state",
            _one_of("state", "running draining stopped out_of_budget past_deadline finished cancelled"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("backend", sa.String(length=16), nullable=False),
        sa.Column("bundle_uri", sa.Text(), nullable=False),
        sa.Column("local_dir", sa.Text(), nullable=True),
        sa.Column("intent", _one_of("intent", "run drain stop stop_now cancel"), nullable=False),
        sa.Column("intent_at", _utc(), nullable=False),
        sa.Column("created_at", _utc(), nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("warnings", sa.Text(), nullable=False),
        sa.Column("exhausted", sa.Boolean(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("holder_host", sa.Text(), nullable=True),
        sa.Column("holder_boot_id", sa.Text(), nullable=True),
        sa.Column("holder_pid", sa.Integer(), nullable=True),
        sa.Column("holder_started", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", _utc(), nullable=True),
        sa.Column("last_tick_at", _utc(), nullable=True),
        sa.CheckConstraint(
            "(holder_host IS NULL) = (lease_expires_at IS NULL) AND (holder_host IS NULL) = (holder_boot_id IS NULL)"
            " AND (holder_host IS NULL) = (holder_pid IS NULL)"
            " AND (holder_host IS NULL) = (holder_started IS NULL)",
            name=op.f("ck_tuner_studies_lease_whole"),
        ),
        *_not_negative("tuner_studies", "fence version"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tuner_studies")),
        sa.UniqueConstraint("key", name=op.f("uq_tuner_studies_key")),
        sa.UniqueConstraint("name", name=op.f("uq_tuner_studies_name")),
    )


def _trials() -> None:
    op.create_table(
        "tuner_trials",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            _one_of("state", "proposed running backing_off paused succeeded pruned failed cancelled"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("params", sa.Text(), nullable=False),
        sa.Column("distributions", sa.Text(), nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("bundle_uri", sa.Text(), nullable=False),
        sa.Column("asked_seq", sa.Integer(), nullable=False),
        sa.Column("created_at", _utc(), nullable=False),
        sa.Column("told_seq", sa.Integer(), nullable=True),
        sa.Column("finished_at", _utc(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("objective_values", sa.Text(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("last_value", sa.Double(), nullable=True),
        sa.Column("judged_step", sa.BigInteger(), nullable=True),
        sa.Column("pruned_at_step", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("faults", sa.Integer(), nullable=False),
        sa.Column("due_at", _utc(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'pruned', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="finished_if_terminal",
        ),
        sa.CheckConstraint("due_at IS NULL OR state = 'backing_off'", name="due_while_backing_off"),
        sa.CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name="failure_has_reason"),
        sa.CheckConstraint("state <> 'succeeded' OR value IS NOT NULL", name="success_has_value"),
        sa.CheckConstraint("substr(prefix, length(prefix), 1) = '/'", name="prefix_ends_in_slash"),
        sa.CheckConstraint("value IS NULL OR state IN ('succeeded', 'pruned')", name="value_of_an_end"),
        sa.CheckConstraint("(finished_at IS NULL) = (told_seq IS NULL)", name="told_when_finished"),
        sa.CheckConstraint("(value IS NULL) = (objective_values IS NULL)", name="first_value"),
        *_not_negative("tuner_trials", "attempts faults number version"),
        sa.CheckConstraint("last_value IS NULL OR last_step IS NOT NULL", name="last_value_has_step"),
        sa.ForeignKeyConstraint(["study_id"], ["tuner_studies.id"], name=op.f("fk_tuner_trials_tuner_studies")),
        sa.PrimaryKeyConstraint("study_id", "number", name=op.f("pk_tuner_trials")),
        sa.UniqueConstraint("prefix", name=op.f("uq_tuner_trials_prefix")),
    )
    op.create_index(
        "ix_tuner_trials_live",
        "tuner_trials",
        ["study_id", "number"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NULL"),
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(
        op.f("ix_tuner_trials_study_id_state_value"), "tuner_trials", ["study_id", "state", "value"], unique=False
    )


def _attempts() -> None:
    op.create_table(
        "tuner_attempts",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", _one_of("state", "submitting waiting training interrupted stopping ended"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("job_name", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("instance_type", sa.Text(), nullable=False),
        sa.Column("instance_count", sa.Integer(), nullable=False),
        sa.Column("spot", sa.Boolean(), nullable=False),
        sa.Column("rate_microusd_per_h", sa.BigInteger(), nullable=False),
        sa.Column("max_run_s", sa.Integer(), nullable=False),
        sa.Column("max_wait_s", sa.Integer(), nullable=True),
        sa.Column("reserved_microusd", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _utc(), nullable=False),
        sa.Column("arn", sa.Text(), nullable=True),
        sa.Column("submitted_at", _utc(), nullable=True),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.Column("next_try_at", _utc(), nullable=True),
        sa.Column("history_rows", sa.Integer(), nullable=False),
        sa.Column("observed_at", _utc(), nullable=True),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column(
            "stop_reason",
            _one_of("stop_reason", "prune pause move limit stall trial_budget no_progress user cancel"),
            nullable=True,
        ),
        sa.Column("stop_wanted_at", _utc(), nullable=True),
        sa.Column("stop_by", _utc(), nullable=True),
        sa.Column("stop_sent_at", _utc(), nullable=True),
        sa.Column(
            "end",
            _one_of("end", "completed stopped max_wait max_run capacity service_fault script_error rejected foreign"),
            nullable=True,
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("ended_at", _utc(), nullable=True),
        sa.Column("run_s", sa.Double(), nullable=False),
        sa.Column("training_s", sa.Integer(), nullable=True),
        sa.Column("billable_s", sa.Integer(), nullable=True),
        sa.Column("startup_s", sa.Double(), nullable=False),
        sa.Column("upload_s", sa.Double(), nullable=False),
        sa.Column("estimated_microusd", sa.BigInteger(), nullable=False),
        sa.Column("spend_microusd", sa.BigInteger(), nullable=True),
        sa.Column("on_demand_microusd", sa.BigInteger(), nullable=True),
        sa.Column("model_uri", sa.Text(), nullable=True),
        *_attempt_constraints(),
    )
    op.create_index(
        "ix_tuner_attempts_live",
        "tuner_attempts",
        ["study_id", "trial"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def _attempt_constraints() -> list[sa.Constraint]:
    return [
        sa.CheckConstraint("(state = 'ended') = (ended_at IS NOT NULL)", name="ended_at_if_ended"),
        sa.CheckConstraint("spend_microusd IS NULL OR state = 'ended'", name="final_when_ended"),
        sa.CheckConstraint("(spend_microusd IS NULL) = (on_demand_microusd IS NULL)", name="finals_together"),
        sa.CheckConstraint("(state = 'ended') = (\"end\" IS NOT NULL)", name="end_if_ended"),
        sa.CheckConstraint("(stop_reason IS NULL) = (stop_wanted_at IS NULL)", name="stop_has_reason"),
        *_not_negative(
            "tuner_attempts",
            "billable_s estimated_microusd history_rows interruptions on_demand_microusd rate_microusd_per_h"
            " refusals reserved_microusd restarts run_s spend_microusd startup_s training_s upload_s version",
        ),
        sa.CheckConstraint("instance_count >= 1", name="instances"),
        sa.CheckConstraint("max_run_s >= 1", name="max_run"),
        sa.CheckConstraint("number >= 1", name="number_from_one"),
        sa.CheckConstraint("spot = (max_wait_s IS NOT NULL)", name="spot_has_max_wait"),
        sa.CheckConstraint(
            "stop_wanted_at IS NOT NULL OR (stop_by IS NULL AND stop_sent_at IS NULL)", name="stop_wanted"
        ),
        sa.ForeignKeyConstraint(
            ["study_id", "trial"],
            ["tuner_trials.study_id", "tuner_trials.number"],
            name=op.f("fk_tuner_attempts_tuner_trials"),
        ),
        sa.PrimaryKeyConstraint("study_id", "trial", "number", name=op.f("pk_tuner_attempts")),
        sa.UniqueConstraint("job_name", name=op.f("uq_tuner_attempts_job_name")),
    ]


def _runs() -> None:
    op.create_table(
        "tuner_runs",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("started_at", _utc(), nullable=False),
        sa.Column("ended_at", _utc(), nullable=True),
        sa.Column("end", _one_of("end", "interrupted restarted ended"), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("had_checkpoint", sa.Boolean(), nullable=True),
        sa.Column("resume_step", sa.BigInteger(), nullable=True),
        sa.Column("first_step", sa.BigInteger(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("resumed_from_step", sa.BigInteger(), nullable=True),
        sa.Column("restarted_from_zero", sa.Boolean(), nullable=True),
        sa.Column("lost_work_s", sa.Double(), nullable=True),
        sa.CheckConstraint('("end" IS NULL) = (ended_at IS NULL)', name="end_has_time"),
        *_not_negative("tuner_runs", "lost_work_s"),
        sa.CheckConstraint("number >= 1", name="number_from_one"),
        sa.CheckConstraint(
            "resumed_from_step IS NULL OR restarted_from_zero IS NULL OR NOT restarted_from_zero",
            name="resumed_or_from_zero",
        ),
        sa.ForeignKeyConstraint(
            ["study_id", "trial", "attempt"],
            ["tuner_attempts.study_id", "tuner_attempts.trial", "tuner_attempts.number"],
            name=op.f("fk_tuner_runs_tuner_attempts"),
        ),
        sa.PrimaryKeyConstraint("study_id", "trial", "attempt", "number", name=op.f("pk_tuner_runs")),
    )


def _metrics() -> None:
    op.create_table(
        "tuner_metrics",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("at", _utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id", "trial"],
            ["tuner_trials.study_id", "tuner_trials.number"],
            name=op.f("fk_tuner_metrics_tuner_trials"),
        ),
        sa.PrimaryKeyConstraint("study_id", "trial", "step", "name", name=op.f("pk_tuner_metrics")),
    )


def _events() -> None:
    op.create_table(
        "tuner_events",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("recorded_at", _utc(), nullable=False),
        sa.Column("happened_at", _utc(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("before", sa.String(length=32), nullable=True),
        sa.Column("after", sa.String(length=32), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.CheckConstraint("attempt IS NULL OR trial IS NOT NULL", name="attempt_has_trial"),
        sa.CheckConstraint("seq >= 1", name="seq_from_one"),
        sa.ForeignKeyConstraint(["study_id"], ["tuner_studies.id"], name=op.f("fk_tuner_events_tuner_studies")),
        sa.PrimaryKeyConstraint("study_id", "seq", name=op.f("pk_tuner_events")),
    )
    op.create_index(
        op.f("ix_tuner_events_study_id_trial_seq"), "tuner_events", ["study_id", "trial", "seq"], unique=False
    )


def _requests() -> None:
    op.create_table(
        "tuner_requests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("verb", sa.String(length=16), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("at", _utc(), nullable=False),
        sa.Column("applied_at", _utc(), nullable=True),
        sa.CheckConstraint("verb IN ('set', 'stop', 'cancel')", name="verb"),
        sa.ForeignKeyConstraint(["study_id"], ["tuner_studies.id"], name=op.f("fk_tuner_requests_tuner_studies")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tuner_requests")),
    )
    op.create_index(
        "ix_tuner_requests_pending",
        "tuner_requests",
        ["study_id", "id"],
        unique=False,
        sqlite_where=sa.text("applied_at IS NULL"),
        postgresql_where=sa.text("applied_at IS NULL"),
    )
