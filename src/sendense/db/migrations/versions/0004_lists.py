"""tags of backups in a table of their own, and indexes that answer lists alone.

Revision: 0004, follows 0003
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from sendense.db.base import JSON_VALUE, UtcDateTime, text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BATCH = 1000  # backups read at once: whatever their number, memory stays small

Indexes = tuple[tuple[str, str, tuple[str, ...]], ...]

# Each covers what a list may ask, so that counting and leafing never touch a row. They have names
# of their own: PostgreSQL allows 63 characters.
_NEW: Indexes = (
    (
        "ix_backup_jobs_listed",
        "backup_jobs",
        ("created_at", "id", "deleted_at", "status", "backup_type", "repository_id"),
    ),
    (
        "ix_backup_jobs_listed_of_repository",
        "backup_jobs",
        ("repository_id", "created_at", "id", "deleted_at", "status", "backup_type"),
    ),
    (
        "ix_backup_jobs_listed_of_vm",
        "backup_jobs",
        ("vm_id", "created_at", "id", "deleted_at", "status"),
    ),
    ("ix_backup_jobs_listed_of_vm_name", "backup_jobs", ("vm_name", "created_at", "id")),
    (
        "ix_backup_jobs_looked_up",
        "backup_jobs",
        ("id", "status", "backup_type", "repository_id", "vm_id"),
    ),
    (
        "ix_jobs_listed",
        "jobs",
        ("created_at", "id", "status", "kind", "source_id", "repository_id"),
    ),
)
_OLD: Indexes = (
    ("ix_backup_jobs_created_at_id", "backup_jobs", ("created_at", "id")),
    ("ix_backup_jobs_repository_id_created_at", "backup_jobs", ("repository_id", "created_at")),
    ("ix_backup_jobs_status_created_at", "backup_jobs", ("status", "created_at")),
    ("ix_backup_jobs_vm_id_created_at", "backup_jobs", ("vm_id", "created_at")),
    ("ix_backup_jobs_vm_name", "backup_jobs", ("vm_name",)),
    ("ix_jobs_created_at", "jobs", ("created_at",)),
)
_TAGS: Indexes = (
    (
        "ix_backup_tags_listed",
        "backup_tags",
        ("key", "value", "deleted", "created_at", "backup_id"),
    ),
    ("ix_backup_tags_listed_of_key", "backup_tags", ("key", "deleted", "created_at", "backup_id")),
)


def upgrade() -> None:
    # The new ones first: MariaDB wants an index on what a foreign key names at any time.
    _create(_NEW)
    _drop(_OLD)
    op.create_table(
        "backup_tags",
        sa.Column("backup_id", text(100), nullable=False),
        sa.Column("key", text(63), nullable=False),
        sa.Column("value", text(255), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backup_id"],
            ["backup_jobs.id"],
            name=op.f("fk_backup_tags_backup_id_backup_jobs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("backup_id", "key", name=op.f("pk_backup_tags")),
        sqlite_with_rowid=False,
    )
    _copy_tags()
    _create(_TAGS)


def downgrade() -> None:
    op.drop_table("backup_tags")
    _create(_OLD)
    _drop(_NEW)


def _create(indexes: Indexes) -> None:
    for name, table, columns in indexes:
        op.create_index(op.f(name), table, list(columns))


def _drop(indexes: Indexes) -> None:
    for name, table, _ in indexes:
        op.drop_index(op.f(name), table_name=table)


def _copy_tags() -> None:
    backups = sa.table(
        "backup_jobs",
        sa.column("id", text(100)),
        sa.column("tags", JSON_VALUE),
        sa.column("deleted_at", UtcDateTime()),
        sa.column("created_at", UtcDateTime()),
    )
    tags = sa.table(
        "backup_tags",
        sa.column("backup_id", text(100)),
        sa.column("key", text(63)),
        sa.column("value", text(255)),
        sa.column("deleted", sa.Boolean()),
        sa.column("created_at", UtcDateTime()),
    )
    connection = op.get_bind()
    connection.execute(sa.delete(tags))  # of an attempt that was interrupted, on MariaDB
    after = ""
    while found := connection.execute(
        sa.select(backups).where(backups.c.id > after).order_by(backups.c.id).limit(BATCH)
    ).all():
        after = found[-1].id
        copied: list[dict[str, Any]] = [
            {
                "backup_id": row.id,
                "key": key,
                "value": value,
                "deleted": row.deleted_at is not None,
                "created_at": row.created_at,
            }
            for row in found
            for key, value in row.tags.items()
        ]
        if copied:
            connection.execute(sa.insert(tags), copied)
