"""What a recovery has to remember: the epoch under which it builds Redis anew, and why Redis' data is doubtful."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Applies the change."""
    op.add_column("settings", sa.Column("next_epoch", sa.Text()))
    op.add_column("settings", sa.Column("doubt", sa.Text()))
