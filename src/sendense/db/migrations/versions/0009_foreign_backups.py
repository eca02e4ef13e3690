"""how many backups in a repository are not this hub's.

Revision: 0009, follows 0008
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import BIG_INT

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("backup_repositories", sa.Column("foreign_backups", BIG_INT, nullable=True))


def downgrade() -> None:
    op.drop_column("backup_repositories", "foreign_backups")
