"""The tables, their column types, and the invariants that a row or an index can hold by itself.

These constraints are the last line of defence. Logic decides, guarded updates refuse stale writes, and constraints
refuse rows that no logic may ever write.

Rules: only SQL that SQLite and PostgreSQL share. Keys are natural (study, trial, attempt, run), so a record needs no
row id. All names start with `tuner_`, because the database may also hold Optuna's tables. Columns have the names of the
record's fields; `rows` converts the few exceptions. Every change here needs a revision in `migrations/`, and a test
compares the two.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

from tuner.core.records import AttemptEnd, AttemptState, Intent, RunEnd, StopReason, StudyState, TrialState

# Optuna uses Alembic's default name, and may share the database.
VERSION_TABLE = "tuner_alembic_version"
PREFIX = "tuner_"


class Utc(TypeDecorator[datetime]):
    """An aware time, stored in UTC to the microsecond, so that text sorts as timestamps do."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the same everywhere
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone: the store keeps aware times only")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the same in both
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """JSON as text. NaN and infinity are refused: JSON has neither, and strict readers fail on them."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ANN401, ARG002 - any JSON
        if value is None:
            return None
        return json.dumps(dict(value) if isinstance(value, Mapping) else value, allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ANN401, ARG002 - what it held
        return None if value is None else json.loads(value)


class NanAsNull(TypeDecorator[float]):
    """A number that is never missing. NULL stands for NaN, as in SQLite; infinities are stored as they are."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:  # noqa: ARG002 - the same in both
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: float | None, dialect: Dialect) -> float | None:  # noqa: ARG002 - the same in both
        return math.nan if value is None else value


class ForeignText(TypeDecorator[str]):
    """Text from a script or a service. Databases refuse NUL and lone surrogates; they become question marks."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - the same in both
        return None if value is None else value.replace("\0", "?").encode("utf-8", "replace").decode()


def _one_of(kind: type[StrEnum], name: str) -> Enum:
    """A member of `kind`, stored as its value under a CHECK. No native type, since Optuna's types have such names."""
    return Enum(
        kind,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=32,
        values_callable=lambda k: [m.value for m in k],
    )


def _among(*values: str) -> str:
    return "(" + ", ".join(f"'{v}'" for v in values) + ")"


def _not_negative(*columns: str) -> list[CheckConstraint]:
    return [CheckConstraint(f"{column} >= 0", name=f"{column}_not_negative") for column in columns]


metadata = MetaData(
    naming_convention={
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

studies = Table(
    "tuner_studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(32), nullable=False),
    Column("key", String(64), nullable=False),
    Column("owner", Text, nullable=False),
    Column("state", _one_of(StudyState, "state"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("backend", String(16), nullable=False),
    Column("bundle_uri", Text, nullable=False),
    Column("local_dir", Text),
    Column("intent", _one_of(Intent, "intent"), nullable=False),
    Column("intent_at", Utc, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("attrs", JsonText, nullable=False),
    Column("warnings", JsonText, nullable=False),
    Column("exhausted", Boolean, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("holder_host", Text),
    Column("holder_boot_id", Text),
    Column("holder_pid", Integer),
    Column("holder_started", Text),
    Column("lease_expires_at", Utc),
    Column("last_tick_at", Utc),
    UniqueConstraint("name"),
    UniqueConstraint("key"),
    *_not_negative("version", "fence"),
    # a lease has all of its fields or none
    CheckConstraint(
        "(holder_host IS NULL) = (lease_expires_at IS NULL) AND (holder_host IS NULL) = (holder_boot_id IS NULL)"
        " AND (holder_host IS NULL) = (holder_pid IS NULL) AND (holder_host IS NULL) = (holder_started IS NULL)",
        name="lease_whole",
    ),
)

_TERMINAL = _among(*(s for s in TrialState if s.terminal))

trials = Table(
    "tuner_trials",
    metadata,
    Column("study_id", Integer, ForeignKey("tuner_studies.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", _one_of(TrialState, "state"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("params", JsonText, nullable=False),
    Column("distributions", Text, nullable=False),
    Column("attrs", JsonText, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("bundle_uri", Text, nullable=False),
    Column("asked_seq", Integer, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("told_seq", Integer),
    Column("finished_at", Utc),
    Column("reason", ForeignText),
    Column("value", Double),  # the first of `objective_values`, for the index
    Column("objective_values", JsonText),
    Column("last_step", BigInteger),
    Column("last_value", Double),  # NULL with a `last_step` means NaN
    Column("judged_step", BigInteger),
    Column("pruned_at_step", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("faults", Integer, nullable=False),
    Column("due_at", Utc),
    PrimaryKeyConstraint("study_id", "number"),
    UniqueConstraint("prefix"),  # of the attempts of one trial only
    *_not_negative("number", "version", "attempts", "faults"),
    CheckConstraint(f"(state IN {_TERMINAL}) = (finished_at IS NOT NULL)", name="finished_if_terminal"),
    CheckConstraint("(finished_at IS NULL) = (told_seq IS NULL)", name="told_when_finished"),
    CheckConstraint("substr(prefix, length(prefix), 1) = '/'", name="prefix_ends_in_slash"),
    CheckConstraint("value IS NULL OR state IN ('succeeded', 'pruned')", name="value_of_an_end"),
    CheckConstraint("state <> 'succeeded' OR value IS NOT NULL", name="success_has_value"),
    CheckConstraint("(value IS NULL) = (objective_values IS NULL)", name="first_value"),
    CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name="failure_has_reason"),
    CheckConstraint("last_value IS NULL OR last_step IS NOT NULL", name="last_value_has_step"),
    CheckConstraint("due_at IS NULL OR state = 'backing_off'", name="due_while_backing_off"),
    Index(
        "ix_tuner_trials_live",
        "study_id",
        "number",
        sqlite_where=text("finished_at IS NULL"),
        postgresql_where=text("finished_at IS NULL"),
    ),
    Index(None, "study_id", "state", "value"),
)

attempts = Table(
    "tuner_attempts",
    metadata,
    Column("study_id", Integer, nullable=False),
    Column("trial", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", _one_of(AttemptState, "state"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("job_name", String(63), nullable=False),
    Column("digest", Text, nullable=False),
    Column("instance_type", Text, nullable=False),
    Column("instance_count", Integer, nullable=False),
    Column("spot", Boolean, nullable=False),
    Column("rate_microusd_per_h", BigInteger, nullable=False),
    Column("max_run_s", Integer, nullable=False),
    Column("max_wait_s", Integer),
    Column("reserved_microusd", BigInteger, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("arn", Text),
    Column("submitted_at", Utc),
    Column("refusals", Integer, nullable=False),
    Column("next_try_at", Utc),
    Column("history_rows", Integer, nullable=False),
    Column("observed_at", Utc),
    Column("interruptions", Integer, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("stop_reason", _one_of(StopReason, "stop_reason")),
    Column("stop_wanted_at", Utc),
    Column("stop_by", Utc),
    Column("stop_sent_at", Utc),
    Column("end", _one_of(AttemptEnd, "end")),
    Column("reason", ForeignText),
    Column("ended_at", Utc),
    Column("run_s", Double, nullable=False),
    Column("training_s", Integer),
    Column("billable_s", Integer),
    Column("startup_s", Double, nullable=False),
    Column("upload_s", Double, nullable=False),
    Column("estimated_microusd", BigInteger, nullable=False),
    Column("spend_microusd", BigInteger),
    Column("on_demand_microusd", BigInteger),
    Column("model_uri", Text),
    Column("zone", String(64)),
    PrimaryKeyConstraint("study_id", "trial", "number"),
    ForeignKeyConstraint(["study_id", "trial"], ["tuner_trials.study_id", "tuner_trials.number"]),
    UniqueConstraint("job_name"),
    *_not_negative(
        *("version", "rate_microusd_per_h", "reserved_microusd", "estimated_microusd", "spend_microusd"),
        *("on_demand_microusd", "refusals", "history_rows", "interruptions", "restarts"),
        *("run_s", "startup_s", "upload_s", "training_s", "billable_s"),
    ),
    CheckConstraint("number >= 1", name="number_from_one"),
    CheckConstraint("instance_count >= 1", name="instances"),
    CheckConstraint("max_run_s >= 1", name="max_run"),
    CheckConstraint("spot = (max_wait_s IS NOT NULL)", name="spot_has_max_wait"),
    CheckConstraint("(state = 'ended') = (ended_at IS NOT NULL)", name="ended_at_if_ended"),
    CheckConstraint("(state = 'ended') = (\"end\" IS NOT NULL)", name="end_if_ended"),
    CheckConstraint("spend_microusd IS NULL OR state = 'ended'", name="final_when_ended"),
    CheckConstraint("(spend_microusd IS NULL) = (on_demand_microusd IS NULL)", name="finals_together"),
    CheckConstraint("(stop_reason IS NULL) = (stop_wanted_at IS NULL)", name="stop_has_reason"),
    CheckConstraint("stop_wanted_at IS NOT NULL OR (stop_by IS NULL AND stop_sent_at IS NULL)", name="stop_wanted"),
    # at most one live attempt per trial
    Index(
        "ix_tuner_attempts_live",
        "study_id",
        "trial",
        unique=True,
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
)

runs = Table(
    "tuner_runs",
    metadata,
    Column("study_id", Integer, nullable=False),
    Column("trial", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("started_at", Utc, nullable=False),
    Column("ended_at", Utc),
    Column("end", _one_of(RunEnd, "end")),
    Column("run_id", ForeignText),
    Column("had_checkpoint", Boolean),
    Column("resume_step", BigInteger),
    Column("first_step", BigInteger),
    Column("last_step", BigInteger),
    Column("resumed_from_step", BigInteger),
    Column("restarted_from_zero", Boolean),
    Column("lost_work_s", Double),
    PrimaryKeyConstraint("study_id", "trial", "attempt", "number"),
    ForeignKeyConstraint(
        ["study_id", "trial", "attempt"],
        ["tuner_attempts.study_id", "tuner_attempts.trial", "tuner_attempts.number"],
    ),
    *_not_negative("lost_work_s"),
    CheckConstraint("number >= 1", name="number_from_one"),
    CheckConstraint('("end" IS NULL) = (ended_at IS NULL)', name="end_has_time"),
    CheckConstraint(
        "resumed_from_step IS NULL OR restarted_from_zero IS NULL OR NOT restarted_from_zero",
        name="resumed_or_from_zero",
    ),
)

points = Table(
    "tuner_metrics",
    metadata,
    Column("study_id", Integer, nullable=False),
    Column("trial", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("name", ForeignText, nullable=False),
    Column("value", NanAsNull),
    Column("attempt", Integer, nullable=False),
    Column("run_id", ForeignText, nullable=False),
    Column("at", Utc, nullable=False),
    PrimaryKeyConstraint("study_id", "trial", "step", "name"),
    ForeignKeyConstraint(["study_id", "trial"], ["tuner_trials.study_id", "tuner_trials.number"]),
)

events = Table(
    "tuner_events",
    metadata,
    Column("study_id", Integer, ForeignKey("tuner_studies.id"), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("recorded_at", Utc, nullable=False),
    Column("happened_at", Utc, nullable=False),
    Column("trial", Integer),
    Column("attempt", Integer),
    Column("before", String(32)),
    Column("after", String(32)),
    Column("details", JsonText, nullable=False),
    PrimaryKeyConstraint("study_id", "seq"),
    Index(None, "study_id", "trial", "seq"),
    CheckConstraint("seq >= 1", name="seq_from_one"),
    CheckConstraint("attempt IS NULL OR trial IS NOT NULL", name="attempt_has_trial"),
)

requests = Table(
    "tuner_requests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, ForeignKey("tuner_studies.id"), nullable=False),
    Column("verb", String(16), nullable=False),
    Column("values", JsonText, nullable=False),
    Column("who", Text, nullable=False),
    Column("at", Utc, nullable=False),
    Column("applied_at", Utc),
    CheckConstraint("verb IN ('set', 'stop', 'cancel')", name="verb"),
    Index(
        "ix_tuner_requests_pending",
        "study_id",
        "id",
        sqlite_where=text("applied_at IS NULL"),
        postgresql_where=text("applied_at IS NULL"),
    ),
)

# Data of an account in a region (a scope, "account/region"), which several engines share.

buckets = Table(
    "tuner_buckets",
    metadata,
    Column("scope", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("tokens", Double, nullable=False),
    Column("updated_at", Utc, nullable=False),
    PrimaryKeyConstraint("scope", "operation"),
    *_not_negative("tokens"),
)

facts = Table(
    "tuner_facts",
    metadata,
    Column("scope", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", JsonText, nullable=False),
    Column("learned_at", Utc, nullable=False),
    Column("source", ForeignText, nullable=False),
    PrimaryKeyConstraint("scope", "name"),
)

prices = Table(
    "tuner_prices",
    metadata,
    Column("region", Text, nullable=False),
    Column("instance_type", Text, nullable=False),
    Column("usd_per_hour", Text, nullable=False),  # a decimal number as text, since SQLite has no decimals
    Column("as_of", Text, nullable=False),  # the source's own date
    Column("fetched_at", Utc, nullable=False),
    PrimaryKeyConstraint("region", "instance_type"),
)
