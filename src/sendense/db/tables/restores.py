"""What was read back, where to, with what result."""

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, WORD_LENGTH_MAX, Base, text


class RestoreRow(Base):
    """One disk of a backup, written to a target."""

    __tablename__ = "restores"
    __table_args__ = (Index(None, "created_at"), Index(None, "backup_id"))

    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    job_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), unique=True
    )
    backup_id: Mapped[str] = mapped_column(ForeignKey("backup_jobs.id"))
    disk_id: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    key: Mapped[int]
    target: Mapped[dict[str, Any]]
    overwrite: Mapped[bool] = mapped_column(Boolean(), default=False)
    status: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    total_bytes: Mapped[int] = mapped_column(default=0)
    bytes_written: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
