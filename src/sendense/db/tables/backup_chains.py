"""Per VM, disk and repository: where its backups begin and end."""

from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, WORD_LENGTH_MAX, Base, text


class ChainRow(Base):
    """The live backups of one disk in one repository.

    A chain never exists before its backup: both ends are foreign keys and never empty.
    """

    __tablename__ = "backup_chains"
    __table_args__ = (UniqueConstraint("vm_id", "key", "repository_id"),)

    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vm_contexts.id"))
    disk_id: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    key: Mapped[int]
    repository_id: Mapped[str] = mapped_column(ForeignKey("backup_repositories.id"), index=True)
    full_backup_id: Mapped[str] = mapped_column(ForeignKey("backup_jobs.id"), index=True)
    latest_backup_id: Mapped[str] = mapped_column(ForeignKey("backup_jobs.id"), index=True)
    total_backups: Mapped[int]
    total_size_bytes: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
