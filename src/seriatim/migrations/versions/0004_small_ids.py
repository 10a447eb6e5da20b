"""Small ids of series; keys that act for several companies."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

Uuid = sa.Uuid(as_uuid=False)
series = sa.table("series", sa.column("pk"), sa.column("company", Uuid), sa.column("ordinal"))
companies = sa.table("companies", sa.column("id", Uuid), sa.column("series_made"))
api_keys = sa.table("api_keys", sa.column("id"), sa.column("company", Uuid), sa.column("companies"))


def upgrade() -> None:
    """Applies the change: series are numbered in the order of their creation, a key acts for its one company."""
    op.add_column("companies", sa.Column("series_made", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("series", sa.Column("ordinal", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("api_keys", sa.Column("companies", sa.Text(), nullable=False, server_default=sa.text("''")))
    connection = op.get_bind()
    made: dict[str, int] = {}
    for pk, company in connection.execute(sa.select(series.c.pk, series.c.company).order_by(series.c.pk)).all():
        made[company] = made.get(company, 0) + 1
        connection.execute(sa.update(series).where(series.c.pk == pk).values(ordinal=made[company]))
    for company, count in made.items():
        connection.execute(sa.update(companies).where(companies.c.id == company).values(series_made=count))
    for key, company in connection.execute(sa.select(api_keys.c.id, api_keys.c.company)).all():
        connection.execute(sa.update(api_keys).where(api_keys.c.id == key).values(companies=company))
    op.create_index("uq_series_company_ordinal", "series", ["company", "ordinal"], unique=True)
