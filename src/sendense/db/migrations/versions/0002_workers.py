"""workers and take-overs.

Revision: 0002, follows 0001
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import BIG_INT, text

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "take_overs",
        sa.Column("job_id", text(100), nullable=False),
        sa.Column("count", BIG_INT, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_take_overs")),
    )
    op.create_table(
        "workers",
        sa.Column("id", text(100), nullable=False),
        sa.Column("host", text(255), nullable=False),
        sa.Column("pid", BIG_INT, nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("beat_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    op.drop_table("workers")
    op.drop_table("take_overs")
