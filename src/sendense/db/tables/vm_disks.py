"""The disks of the VMs under management, written at discovery, not at backup."""

from datetime import datetime

from sqlalchemy import Boolean, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import NAME_LENGTH_MAX, TEXT_LENGTH_MAX, WORD_LENGTH_MAX, Base, text


class DiskRow(Base):
    """A disk as the last discovery saw it."""

    __tablename__ = "vm_disks"
    __table_args__ = (UniqueConstraint("vm_id", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vm_contexts.id", ondelete="CASCADE"))
    disk_id: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    key: Mapped[int]
    index: Mapped[int]
    label: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX))
    uuid: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX))
    # None where the source could not tell; such a disk cannot be backed up.
    capacity_bytes: Mapped[int | None]
    tracking: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    datastore: Mapped[str | None] = mapped_column(text(NAME_LENGTH_MAX))
    # Why the source says that the disk cannot be backed up.
    unsupported_reason: Mapped[str | None] = mapped_column(text(TEXT_LENGTH_MAX))
    # The user does not want it backed up.
    excluded: Mapped[bool] = mapped_column(Boolean(), default=False)
    # Null from discovery on; kept for clients that look for it.
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    # Set when a discovery no longer finds the disk in its VM; its backups stay.
    gone_at: Mapped[datetime | None]
