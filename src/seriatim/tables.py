"""The tables of the store, the same in SQLite and PostgreSQL. Times are milliseconds since 1970 in UTC."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Uuid = sa.Uuid(as_uuid=False)

settings = sa.Table(
    "settings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("pending_generation", sa.BigInteger),
    sa.Column("run_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("shards", sa.Integer, nullable=False),
    sa.Column("next_epoch", sa.Text),
    sa.Column("doubt", sa.Text),
    sa.Column("replicated", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.CheckConstraint("id = 1", name="one_row"),
    sa.CheckConstraint("state IN ('new', 'live', 'halted')", name="state"),
)
companies = sa.Table(
    "companies",
    metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("loaded_epoch", sa.Text),
    sa.Column("series_made", sa.BigInteger, nullable=False, server_default="0"),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("company", Uuid, sa.ForeignKey("companies.id"), nullable=False),
    sa.Column("companies", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
)
series = sa.Table(
    "series",
    metadata,
    sa.Column("pk", Identity, primary_key=True, autoincrement=True),
    sa.Column("id", Uuid, nullable=False, unique=True),
    sa.Column("company", Uuid, sa.ForeignKey("companies.id"), nullable=False),
    sa.Column("ordinal", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("padding", sa.Integer, nullable=False),
    sa.Column("suffix", sa.Text, nullable=False),
    sa.Column("start", sa.BigInteger),
    sa.Column("format", sa.Text),
    sa.Column("timezone", sa.Text, nullable=False, server_default="UTC"),
    sa.Column("fiscal_year_start", sa.Text, nullable=False, server_default="01-01"),
    sa.Column("chronology", sa.Text, nullable=False, server_default="strict"),
    sa.Column("max_length", sa.Integer),
    sa.Column("charset", sa.Text),
    sa.Column("sig", sa.Text),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
    sa.Column("creation", sa.LargeBinary, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("shard", sa.Integer, nullable=False),
    sa.Column("loaded_epoch", sa.Text),
    sa.Column("genesis", sa.LargeBinary),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("k", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("head", sa.Text),
    sa.Column("claims", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("ix_series_company_pk", "company", "pk"),
    sa.Index("uq_series_company_ordinal", "company", "ordinal", unique=True),
    sa.Index(
        "uq_series_default",
        "company",
        "type",
        unique=True,
        sqlite_where=sa.text("is_default"),
        postgresql_where=sa.text("is_default"),
    ),
)
entries = sa.Table(
    "entries",
    metadata,
    sa.Column("series", Identity, sa.ForeignKey("series.pk"), primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", Uuid, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("numbers", sa.Text, nullable=False),
    sa.Column("date", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("previous_id", Uuid),
    sa.Column("meta", sa.LargeBinary, nullable=False),
    sa.Column("sig", sa.Text),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("claimed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("receipt", sa.Text, nullable=False),
    sa.Column("settled_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("series", "id"),
    sa.UniqueConstraint("series", "code"),
    sa.CheckConstraint("(position = 1) = (previous_id IS NULL)", name="chain"),
)
deleted_series = sa.Table(
    "deleted_series",
    metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("company", Uuid, sa.ForeignKey("companies.id"), nullable=False),
    sa.Column("deleted_at", sa.BigInteger, nullable=False),
)
skips = sa.Table(
    "skips",
    metadata,
    sa.Column("series", Identity, sa.ForeignKey("series.pk"), primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("k", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("counter", sa.Text, nullable=False),
    sa.Column("period", sa.Text, nullable=False),
    sa.Column("first", sa.BigInteger, nullable=False),
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("receipt", sa.Text, nullable=False),
    sa.Column("settled_at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("first <= last", name="range"),
)
voids = sa.Table(
    "voids",
    metadata,
    sa.Column("series", Identity, sa.ForeignKey("series.pk"), primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("k", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("voids", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("receipt", sa.Text, nullable=False),
    sa.Column("settled_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("series", "voids"),
    sa.CheckConstraint("voids <= position", name="earlier"),
)
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("series", Identity, sa.ForeignKey("series.pk"), primary_key=True, autoincrement=False),
    sa.Column("counter", sa.Text, primary_key=True),
    sa.Column("period", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("kid", sa.Text, primary_key=True),
    sa.Column("jwk", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", Identity, primary_key=True, autoincrement=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
