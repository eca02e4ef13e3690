"""One row per backup, created before anything refers to it."""

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX, TEXT_LENGTH_MAX, WORD_LENGTH_MAX, Base


class BackupRow(Base):
    """A backup, from the request on; what is in it is told by its repository's manifest."""

    __tablename__ = "backup_jobs"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "vm_id", "created_at"),
        Index(None, "repository_id", "created_at"),
        Index(None, "status", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), primary_key=True)
    job_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), unique=True
    )
    # A VM may be forgotten once its last backup is gone; the history keeps its name.
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("vm_contexts.id", ondelete="SET NULL"))
    vm_name: Mapped[str] = mapped_column(String(NAME_LENGTH_MAX), index=True)
    repository_id: Mapped[str] = mapped_column(ForeignKey("backup_repositories.id"))
    parent_backup_id: Mapped[str | None] = mapped_column(
        ForeignKey("backup_jobs.id", ondelete="SET NULL"), index=True
    )
    requested_type: Mapped[str] = mapped_column(String(WORD_LENGTH_MAX))
    backup_type: Mapped[str] = mapped_column(String(WORD_LENGTH_MAX))
    type_reason: Mapped[str | None] = mapped_column(String(TEXT_LENGTH_MAX))
    status: Mapped[str] = mapped_column(String(WORD_LENGTH_MAX))
    partial: Mapped[bool] = mapped_column(Boolean(), default=False)
    # Disks left out and why: [{"disk_id", "index", "reason"}].
    skipped: Mapped[list[Any]] = mapped_column(default=list)
    warnings: Mapped[list[Any]] = mapped_column(default=list)
    consistency_wish: Mapped[str] = mapped_column(String(WORD_LENGTH_MAX))
    consistency: Mapped[str | None] = mapped_column(String(WORD_LENGTH_MAX))
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
    moment: Mapped[str | None] = mapped_column(String(NAME_LENGTH_MAX))
    deleted_at: Mapped[datetime | None]
