"""sealed credentials of sources, and the hub's name on platforms.

Revision: 0005, follows 0004
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import BIG_INT, JSON_VALUE, text

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sources", sa.Column("credentials", JSON_VALUE, nullable=True))
    op.create_table(
        "hub",
        sa.Column("id", BIG_INT, autoincrement=False, nullable=False),
        sa.Column("name", text(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub")),
    )


def downgrade() -> None:
    op.drop_table("hub")
    op.drop_column("sources", "credentials")
