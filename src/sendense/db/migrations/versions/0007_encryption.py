"""the keys of encrypted repositories.

Revision: 0007, follows 0006
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import JSON_VALUE, text

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null for the repositories that there are: none of them is encrypted.
    op.add_column("backup_repositories", sa.Column("domain", text(32), nullable=True))
    op.add_column("backup_repositories", sa.Column("sealed_key", JSON_VALUE, nullable=True))


def downgrade() -> None:
    op.drop_column("backup_repositories", "sealed_key")
    op.drop_column("backup_repositories", "domain")
