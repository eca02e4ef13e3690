"""the hub's own key, which seals its exports.

Revision: 0010, follows 0009
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import JSON_VALUE, UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hub", sa.Column("sealed_key", JSON_VALUE, nullable=True))
    op.add_column("hub", sa.Column("key_shown_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("hub", "key_shown_at")
    op.drop_column("hub", "sealed_key")
