"""One row per backup and disk."""

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import (
    ID_LENGTH_MAX,
    NAME_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    WORD_LENGTH_MAX,
    Base,
    text,
)

CHANGE_ID_LENGTH_MAX = 1024


class BackupDiskRow(Base):
    """One disk in one backup; the disk's own row may be gone, so its facts are kept here."""

    __tablename__ = "backup_disks"
    __table_args__ = (UniqueConstraint("backup_id", "key"), Index(None, "vm_disk_id"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    backup_id: Mapped[str] = mapped_column(ForeignKey("backup_jobs.id"))
    vm_disk_id: Mapped[int | None] = mapped_column(ForeignKey("vm_disks.id", ondelete="SET NULL"))
    disk_id: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    key: Mapped[int]
    index: Mapped[int]
    label: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX))
    uuid: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX))
    capacity_bytes: Mapped[int]
    # Base of the next incremental; written with the commit, never before.
    change_id: Mapped[str | None] = mapped_column(text(CHANGE_ID_LENGTH_MAX))
    # Root of the disk map in the repository, in hexadecimal.
    root: Mapped[str | None] = mapped_column(text(ID_LENGTH_MAX))
    parent_backup_id: Mapped[str | None] = mapped_column(
        ForeignKey("backup_jobs.id", ondelete="SET NULL"), index=True
    )
    backup_type: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    type_reason: Mapped[str | None] = mapped_column(text(TEXT_LENGTH_MAX))
    status: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    bytes_total: Mapped[int] = mapped_column(default=0)
    bytes_read: Mapped[int] = mapped_column(default=0)
    bytes_new: Mapped[int] = mapped_column(default=0)
    bytes_deduplicated: Mapped[int] = mapped_column(default=0)
