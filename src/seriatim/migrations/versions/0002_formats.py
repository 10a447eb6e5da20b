"""Formats, time zones, fiscal years and chronology of series."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Applies the change: what a series had until now is the default."""
    op.add_column("series", sa.Column("format", sa.Text()))
    op.add_column("series", sa.Column("timezone", sa.Text(), nullable=False, server_default="UTC"))
    op.add_column("series", sa.Column("fiscal_year_start", sa.Text(), nullable=False, server_default="01-01"))
    op.add_column("series", sa.Column("chronology", sa.Text(), nullable=False, server_default="strict"))
    op.add_column("series", sa.Column("max_length", sa.Integer()))
    op.add_column("series", sa.Column("charset", sa.Text()))
