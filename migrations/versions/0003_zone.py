"""The zone of an attempt, where the study file maps zones to subnets."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("tuner_attempts", sa.Column("zone", sa.String(64), nullable=True))
