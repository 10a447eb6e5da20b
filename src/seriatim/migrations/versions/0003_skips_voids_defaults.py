"""Skips and voids in the chain, claims by default series, deleted series."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Identity = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Uuid = sa.Uuid(as_uuid=False)


def upgrade() -> None:
    """Applies the change: what was recorded until now were entries that no default had claimed."""
    op.add_column("companies", sa.Column("version", sa.BigInteger(), nullable=False, server_default="1"))
    op.add_column("companies", sa.Column("loaded_epoch", sa.Text()))
    op.add_column("series", sa.Column("k", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("series", sa.Column("claims", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("entries", sa.Column("claimed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "deleted_series",
        sa.Column("id", Uuid, nullable=False),
        sa.Column("company", Uuid, nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["company"], ["companies.id"], name=op.f("fk_deleted_series_company")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deleted_series")),
    )
    op.create_table(
        "skips",
        sa.Column("series", Identity, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("k", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("counter", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("first <= last", name=op.f("ck_skips_range")),
        sa.ForeignKeyConstraint(["series"], ["series.pk"], name=op.f("fk_skips_series")),
        sa.PrimaryKeyConstraint("series", "position", "k", name=op.f("pk_skips")),
    )
    op.create_table(
        "voids",
        sa.Column("series", Identity, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("k", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("voids", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("voids <= position", name=op.f("ck_voids_earlier")),
        sa.ForeignKeyConstraint(["series"], ["series.pk"], name=op.f("fk_voids_series")),
        sa.PrimaryKeyConstraint("series", "position", "k", name=op.f("pk_voids")),
        sa.UniqueConstraint("series", "voids", name=op.f("uq_voids_series_voids")),
    )
