"""The first tables.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op

from sendense.db.base import BIG_INT, FLOAT, JSON_VALUE, UtcDateTime, text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_backup_repositories()
    _create_idempotency_keys()
    _create_sources()
    _create_jobs()
    _create_vm_contexts()
    _create_backup_jobs()
    _create_vm_disks()
    _create_backup_chains()
    _create_backup_disks()
    _create_restores()


def downgrade() -> None:
    for table in (
        "restores",
        "backup_disks",
        "backup_chains",
        "vm_disks",
        "backup_jobs",
        "vm_contexts",
        "jobs",
        "sources",
        "idempotency_keys",
        "backup_repositories",
    ):
        op.drop_table(table)


def _create_backup_repositories() -> None:
    op.create_table(
        "backup_repositories",
        sa.Column("id", text(100), nullable=False),
        sa.Column("uuid", text(100), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("type", text(32), nullable=False),
        sa.Column("config", JSON_VALUE, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("chunk_size", BIG_INT, nullable=False),
        sa.Column("capacity_bytes", BIG_INT, nullable=True),
        sa.Column("free_bytes", BIG_INT, nullable=True),
        sa.Column("used_bytes", BIG_INT, nullable=True),
        sa.Column("measured_at", UtcDateTime(), nullable=True),
        sa.Column("trouble", text(4096), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup_repositories")),
        sa.UniqueConstraint("name", name=op.f("uq_backup_repositories_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_backup_repositories_uuid")),
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("key", text(255), nullable=False),
        sa.Column("request_hash", text(64), nullable=False),
        sa.Column("answer", JSON_VALUE, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_keys")),
    )
    with op.batch_alter_table("idempotency_keys") as batch:
        batch.create_index(batch.f("ix_idempotency_keys_created_at"), ["created_at"], unique=False)


def _create_sources() -> None:
    op.create_table(
        "sources",
        sa.Column("id", text(100), nullable=False),
        sa.Column("uuid", text(100), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("type", text(32), nullable=False),
        sa.Column("config", JSON_VALUE, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("discovered_at", UtcDateTime(), nullable=True),
        sa.Column("trouble", text(4096), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sources")),
        sa.UniqueConstraint("name", name=op.f("uq_sources_name")),
        sa.UniqueConstraint("uuid", name=op.f("uq_sources_uuid")),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", text(100), nullable=False),
        sa.Column("kind", text(32), nullable=False),
        sa.Column("status", text(32), nullable=False),
        sa.Column("priority", BIG_INT, nullable=False),
        sa.Column("subject", JSON_VALUE, nullable=False),
        sa.Column("vm_slot", text(100), nullable=True),
        sa.Column("source_id", text(100), nullable=True),
        sa.Column("repository_id", text(100), nullable=True),
        sa.Column("retry_of", text(100), nullable=True),
        sa.Column("current_phase", text(32), nullable=False),
        sa.Column("progress_percent", FLOAT, nullable=False),
        sa.Column("progress", JSON_VALUE, nullable=False),
        sa.Column("steps", JSON_VALUE, nullable=False),
        sa.Column("log", JSON_VALUE, nullable=False),
        sa.Column("result", JSON_VALUE, nullable=True),
        sa.Column("error", JSON_VALUE, nullable=True),
        sa.Column("snapshot", JSON_VALUE, nullable=True),
        sa.Column("attempts", BIG_INT, nullable=False),
        sa.Column("cancel_requested_at", UtcDateTime(), nullable=True),
        sa.Column("enqueued_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["backup_repositories.id"],
            name=op.f("fk_jobs_repository_id_backup_repositories"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["retry_of"], ["jobs.id"], name=op.f("fk_jobs_retry_of_jobs"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["source_id"],
            ["sources.id"],
            name=op.f("fk_jobs_source_id_sources"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("vm_slot", name=op.f("uq_jobs_vm_slot")),
    )
    with op.batch_alter_table("jobs") as batch:
        batch.create_index(batch.f("ix_jobs_created_at"), ["created_at"], unique=False)
        batch.create_index(batch.f("ix_jobs_repository_id"), ["repository_id"], unique=False)
        batch.create_index(batch.f("ix_jobs_source_id"), ["source_id"], unique=False)
        batch.create_index(
            batch.f("ix_jobs_status_created_at"), ["status", "created_at"], unique=False
        )
        batch.create_index(batch.f("ix_jobs_updated_at"), ["updated_at"], unique=False)


def _create_vm_contexts() -> None:
    op.create_table(
        "vm_contexts",
        sa.Column("id", text(100), nullable=False),
        sa.Column("source_id", text(100), nullable=False),
        sa.Column("source_uuid", text(100), nullable=False),
        sa.Column("vm_uuid", text(255), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("path", text(1024), nullable=True),
        sa.Column("power_state", text(32), nullable=False),
        sa.Column("guest_os", text(255), nullable=True),
        sa.Column("cpu_count", BIG_INT, nullable=True),
        sa.Column("memory_bytes", BIG_INT, nullable=True),
        sa.Column("tags", JSON_VALUE, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("gone_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["source_id"], ["sources.id"], name=op.f("fk_vm_contexts_source_id_sources")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vm_contexts")),
        sa.UniqueConstraint(
            "source_uuid", "vm_uuid", name=op.f("uq_vm_contexts_source_uuid_vm_uuid")
        ),
    )
    with op.batch_alter_table("vm_contexts") as batch:
        batch.create_index(batch.f("ix_vm_contexts_name"), ["name"], unique=False)
        batch.create_index(batch.f("ix_vm_contexts_source_id"), ["source_id"], unique=False)


def _create_backup_jobs() -> None:
    op.create_table(
        "backup_jobs",
        sa.Column("id", text(100), nullable=False),
        sa.Column("job_id", text(100), nullable=True),
        sa.Column("vm_id", text(100), nullable=True),
        sa.Column("vm_name", text(255), nullable=False),
        sa.Column("repository_id", text(100), nullable=False),
        sa.Column("parent_backup_id", text(100), nullable=True),
        sa.Column("requested_type", text(32), nullable=False),
        sa.Column("backup_type", text(32), nullable=False),
        sa.Column("type_reason", text(4096), nullable=True),
        sa.Column("status", text(32), nullable=False),
        sa.Column("partial", sa.Boolean(), nullable=False),
        sa.Column("skipped", JSON_VALUE, nullable=False),
        sa.Column("warnings", JSON_VALUE, nullable=False),
        sa.Column("consistency_wish", text(32), nullable=False),
        sa.Column("consistency", text(32), nullable=True),
        sa.Column("tags", JSON_VALUE, nullable=False),
        sa.Column("total_bytes", BIG_INT, nullable=False),
        sa.Column("bytes_read", BIG_INT, nullable=False),
        sa.Column("bytes_new", BIG_INT, nullable=False),
        sa.Column("bytes_deduplicated", BIG_INT, nullable=False),
        sa.Column("error", JSON_VALUE, nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.Column("moment", text(255), nullable=True),
        sa.Column("deleted_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_backup_jobs_job_id_jobs"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["parent_backup_id"],
            ["backup_jobs.id"],
            name=op.f("fk_backup_jobs_parent_backup_id_backup_jobs"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["backup_repositories.id"],
            name=op.f("fk_backup_jobs_repository_id_backup_repositories"),
        ),
        sa.ForeignKeyConstraint(
            ["vm_id"],
            ["vm_contexts.id"],
            name=op.f("fk_backup_jobs_vm_id_vm_contexts"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup_jobs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_backup_jobs_job_id")),
    )
    with op.batch_alter_table("backup_jobs") as batch:
        batch.create_index(
            batch.f("ix_backup_jobs_created_at_id"), ["created_at", "id"], unique=False
        )
        batch.create_index(
            batch.f("ix_backup_jobs_parent_backup_id"), ["parent_backup_id"], unique=False
        )
        batch.create_index(
            batch.f("ix_backup_jobs_repository_id_created_at"),
            ["repository_id", "created_at"],
            unique=False,
        )
        batch.create_index(
            batch.f("ix_backup_jobs_status_created_at"), ["status", "created_at"], unique=False
        )
        batch.create_index(
            batch.f("ix_backup_jobs_vm_id_created_at"), ["vm_id", "created_at"], unique=False
        )
        batch.create_index(batch.f("ix_backup_jobs_vm_name"), ["vm_name"], unique=False)


def _create_vm_disks() -> None:
    op.create_table(
        "vm_disks",
        sa.Column("id", BIG_INT, autoincrement=True, nullable=False),
        sa.Column("vm_id", text(100), nullable=False),
        sa.Column("disk_id", text(32), nullable=False),
        sa.Column("key", BIG_INT, nullable=False),
        sa.Column("index", BIG_INT, nullable=False),
        sa.Column("label", text(255), nullable=False),
        sa.Column("uuid", text(255), nullable=False),
        sa.Column("capacity_bytes", BIG_INT, nullable=True),
        sa.Column("tracking", text(32), nullable=False),
        sa.Column("datastore", text(255), nullable=True),
        sa.Column("unsupported_reason", text(4096), nullable=True),
        sa.Column("excluded", sa.Boolean(), nullable=False),
        sa.Column("job_id", text(100), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("gone_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_vm_disks_job_id_jobs"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["vm_id"],
            ["vm_contexts.id"],
            name=op.f("fk_vm_disks_vm_id_vm_contexts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vm_disks")),
        sa.UniqueConstraint("vm_id", "key", name=op.f("uq_vm_disks_vm_id_key")),
    )


def _create_backup_chains() -> None:
    op.create_table(
        "backup_chains",
        sa.Column("id", text(100), nullable=False),
        sa.Column("vm_id", text(100), nullable=False),
        sa.Column("disk_id", text(32), nullable=False),
        sa.Column("key", BIG_INT, nullable=False),
        sa.Column("repository_id", text(100), nullable=False),
        sa.Column("full_backup_id", text(100), nullable=False),
        sa.Column("latest_backup_id", text(100), nullable=False),
        sa.Column("total_backups", BIG_INT, nullable=False),
        sa.Column("total_size_bytes", BIG_INT, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["full_backup_id"],
            ["backup_jobs.id"],
            name=op.f("fk_backup_chains_full_backup_id_backup_jobs"),
        ),
        sa.ForeignKeyConstraint(
            ["latest_backup_id"],
            ["backup_jobs.id"],
            name=op.f("fk_backup_chains_latest_backup_id_backup_jobs"),
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["backup_repositories.id"],
            name=op.f("fk_backup_chains_repository_id_backup_repositories"),
        ),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vm_contexts.id"], name=op.f("fk_backup_chains_vm_id_vm_contexts")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup_chains")),
        sa.UniqueConstraint(
            "vm_id", "key", "repository_id", name=op.f("uq_backup_chains_vm_id_key_repository_id")
        ),
    )
    with op.batch_alter_table("backup_chains") as batch:
        batch.create_index(
            batch.f("ix_backup_chains_full_backup_id"), ["full_backup_id"], unique=False
        )
        batch.create_index(
            batch.f("ix_backup_chains_latest_backup_id"), ["latest_backup_id"], unique=False
        )
        batch.create_index(
            batch.f("ix_backup_chains_repository_id"), ["repository_id"], unique=False
        )


def _create_backup_disks() -> None:
    op.create_table(
        "backup_disks",
        sa.Column("id", BIG_INT, autoincrement=True, nullable=False),
        sa.Column("backup_id", text(100), nullable=False),
        sa.Column("vm_disk_id", BIG_INT, nullable=True),
        sa.Column("disk_id", text(32), nullable=False),
        sa.Column("key", BIG_INT, nullable=False),
        sa.Column("index", BIG_INT, nullable=False),
        sa.Column("label", text(255), nullable=False),
        sa.Column("uuid", text(255), nullable=False),
        sa.Column("capacity_bytes", BIG_INT, nullable=False),
        sa.Column("change_id", text(1024), nullable=True),
        sa.Column("root", text(100), nullable=True),
        sa.Column("parent_backup_id", text(100), nullable=True),
        sa.Column("backup_type", text(32), nullable=False),
        sa.Column("type_reason", text(4096), nullable=True),
        sa.Column("status", text(32), nullable=False),
        sa.Column("bytes_total", BIG_INT, nullable=False),
        sa.Column("bytes_read", BIG_INT, nullable=False),
        sa.Column("bytes_new", BIG_INT, nullable=False),
        sa.Column("bytes_deduplicated", BIG_INT, nullable=False),
        sa.ForeignKeyConstraint(
            ["backup_id"], ["backup_jobs.id"], name=op.f("fk_backup_disks_backup_id_backup_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["parent_backup_id"],
            ["backup_jobs.id"],
            name=op.f("fk_backup_disks_parent_backup_id_backup_jobs"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["vm_disk_id"],
            ["vm_disks.id"],
            name=op.f("fk_backup_disks_vm_disk_id_vm_disks"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup_disks")),
        sa.UniqueConstraint("backup_id", "key", name=op.f("uq_backup_disks_backup_id_key")),
    )
    with op.batch_alter_table("backup_disks") as batch:
        batch.create_index(
            batch.f("ix_backup_disks_parent_backup_id"), ["parent_backup_id"], unique=False
        )
        batch.create_index(batch.f("ix_backup_disks_vm_disk_id"), ["vm_disk_id"], unique=False)


def _create_restores() -> None:
    op.create_table(
        "restores",
        sa.Column("id", text(100), nullable=False),
        sa.Column("job_id", text(100), nullable=True),
        sa.Column("backup_id", text(100), nullable=False),
        sa.Column("disk_id", text(32), nullable=False),
        sa.Column("key", BIG_INT, nullable=False),
        sa.Column("target", JSON_VALUE, nullable=False),
        sa.Column("overwrite", sa.Boolean(), nullable=False),
        sa.Column("status", text(32), nullable=False),
        sa.Column("total_bytes", BIG_INT, nullable=False),
        sa.Column("bytes_written", BIG_INT, nullable=False),
        sa.Column("error", JSON_VALUE, nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["backup_id"], ["backup_jobs.id"], name=op.f("fk_restores_backup_id_backup_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_restores_job_id_jobs"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_restores")),
        sa.UniqueConstraint("job_id", name=op.f("uq_restores_job_id")),
    )
    with op.batch_alter_table("restores") as batch:
        batch.create_index(batch.f("ix_restores_backup_id"), ["backup_id"], unique=False)
        batch.create_index(batch.f("ix_restores_created_at"), ["created_at"], unique=False)
