"""One row per backup, created before anything refers to it."""

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import (
    ID_LENGTH_MAX,
    NAME_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    WORD_LENGTH_MAX,
    Base,
    text,
)


class BackupRow(Base):
    """A backup, from the request on; what is in it is told by its repository's manifest."""

    __tablename__ = "backup_jobs"
    __table_args__ = (
        # Each holds what a list may ask: it is counted and leafed through without a row.
        Index(
            "ix_backup_jobs_listed",
            *("created_at", "id", "deleted_at", "status", "backup_type", "repository_id"),
        ),
        Index(
            "ix_backup_jobs_listed_of_repository",
            *("repository_id", "created_at", "id", "deleted_at", "status", "backup_type"),
        ),
        Index("ix_backup_jobs_listed_of_vm", "vm_id", "created_at", "id", "deleted_at", "status"),
        Index("ix_backup_jobs_listed_of_vm_name", "vm_name", "created_at", "id"),
        # For what a tag has found already.
        Index("ix_backup_jobs_looked_up", "id", "status", "backup_type", "repository_id", "vm_id"),
    )

    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    job_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), unique=True
    )
    # A VM may be forgotten once its last backup is gone; the history keeps its name.
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("vm_contexts.id", ondelete="SET NULL"))
    vm_name: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX))
    repository_id: Mapped[str] = mapped_column(ForeignKey("backup_repositories.id"))
    parent_backup_id: Mapped[str | None] = mapped_column(
        ForeignKey("backup_jobs.id", ondelete="SET NULL"), index=True
    )
    requested_type: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    backup_type: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    type_reason: Mapped[str | None] = mapped_column(text(TEXT_LENGTH_MAX))
    status: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    partial: Mapped[bool] = mapped_column(Boolean(), default=False)
    # Disks left out and why: [{"disk_id", "index", "reason"}].
    skipped: Mapped[list[Any]] = mapped_column(default=list)
    warnings: Mapped[list[Any]] = mapped_column(default=list)
    consistency_wish: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    consistency: Mapped[str | None] = mapped_column(text(WORD_LENGTH_MAX))
    tags: Mapped[dict[str, str]] = mapped_column(default=dict)
    total_bytes: Mapped[int] = mapped_column(default=0)
    bytes_read: Mapped[int] = mapped_column(default=0)
    bytes_new: Mapped[int] = mapped_column(default=0)
    bytes_deduplicated: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    # The moment of the snapshot, as the source names it.
    moment: Mapped[str | None] = mapped_column(text(NAME_LENGTH_MAX))
    deleted_at: Mapped[datetime | None]
    # Set where the catalog has it from a repository, not from a job of its own.
    imported_at: Mapped[datetime | None]
    # As the repository says; it decides. `hold` is who, why and when, None where nobody does.
    immutable_until: Mapped[datetime | None]
    hold: Mapped[dict[str, Any] | None]
