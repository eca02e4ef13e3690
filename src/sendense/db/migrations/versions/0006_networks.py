"""the networks that VMs are attached to.

Revision: 0006, follows 0005
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import JSON_VALUE

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null until the next discovery.
    op.add_column("vm_contexts", sa.Column("networks", JSON_VALUE, nullable=True))


def downgrade() -> None:
    op.drop_column("vm_contexts", "networks")
