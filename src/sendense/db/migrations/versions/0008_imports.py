"""when a backup was imported from its repository.

Revision: 0008, follows 0007
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("backup_jobs", sa.Column("imported_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("backup_jobs", "imported_at")
