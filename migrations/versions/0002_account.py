"""What belongs to an account in a region, and is shared by all engines there: call budgets, facts, prices."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _utc() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tuner_buckets",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("updated_at", _utc(), nullable=False),
        sa.CheckConstraint("tokens >= 0", name=op.f("ck_tuner_buckets_tokens_not_negative")),
        sa.PrimaryKeyConstraint("scope", "operation", name=op.f("pk_tuner_buckets")),
    )
    op.create_table(
        "tuner_facts",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("learned_at", _utc(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "name", name=op.f("pk_tuner_facts")),
    )
    op.create_table(
        "tuner_prices",
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("instance_type", sa.Text(), nullable=False),
        sa.Column("usd_per_hour", sa.Text(), nullable=False),
        sa.Column("as_of", sa.Text(), nullable=False),
        sa.Column("fetched_at", _utc(), nullable=False),
        sa.PrimaryKeyConstraint("region", "instance_type", name=op.f("pk_tuner_prices")),
    )
