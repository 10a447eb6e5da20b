"""Whether Redis was seen with replicas: then another server may come to stand for the one that allocates."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Applies the change."""
    op.add_column("settings", sa.Column("replicated", sa.Boolean(), server_default=sa.false(), nullable=False))
