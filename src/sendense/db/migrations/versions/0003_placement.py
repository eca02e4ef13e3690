"""labels of workers, what sources and repositories demand, and which job engine is the hub's.

Revision: 0003, follows 0002
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import JSON_VALUE, text

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Null means none: a default that is an expression is written differently on each database.
_ADDED = (
    ("workers", "labels"),
    ("sources", "required_labels"),
    ("backup_repositories", "required_labels"),
    ("jobs", "required_labels"),
)


def upgrade() -> None:
    for table, column in _ADDED:
        op.add_column(table, sa.Column(column, JSON_VALUE, nullable=True))
    op.add_column("workers", sa.Column("version", text(32), nullable=True))
    op.create_table(
        "job_engine",
        sa.Column("identity", text(100), nullable=False),
        sa.PrimaryKeyConstraint("identity", name=op.f("pk_job_engine")),
    )


def downgrade() -> None:
    op.drop_table("job_engine")
    op.drop_column("workers", "version")
    for table, column in reversed(_ADDED):
        op.drop_column(table, column)
