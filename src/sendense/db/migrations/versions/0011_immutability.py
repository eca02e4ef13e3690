"""who holds a backup, until when it is immutable, and of which repositories backups are.

Revision: 0011, follows 0010
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import BIG_INT, JSON_VALUE, UtcDateTime, text

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("backup_jobs", sa.Column("immutable_until", UtcDateTime(), nullable=True))
    op.add_column("backup_jobs", sa.Column("hold", JSON_VALUE, nullable=True))
    # Null for the repositories that there are: no backup in them is immutable.
    op.add_column("backup_repositories", sa.Column("immutable_days", BIG_INT, nullable=True))
    op.add_column("backup_repositories", sa.Column("lock_mode", text(32), nullable=True))


def downgrade() -> None:
    op.drop_column("backup_repositories", "lock_mode")
    op.drop_column("backup_repositories", "immutable_days")
    op.drop_column("backup_jobs", "hold")
    op.drop_column("backup_jobs", "immutable_until")
