"""The tags of backups, as their lists look for them."""

from datetime import datetime

from sqlalchemy import Boolean, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, Base, text

TAG_KEY_LENGTH_MAX = 63
TAG_VALUE_LENGTH_MAX = 255


class BackupTagRow(Base):
    """One tag of one backup: a copy of what `BackupRow.tags` says, in an order to look it up.

    Looking into the JSON of 100,000 backups takes MariaDB 300 ms. The backup's moment, and whether
    it was deleted, are here too, so that a page of a tag is read from an index alone.
    """

    __tablename__ = "backup_tags"
    __table_args__ = (
        Index("ix_backup_tags_listed", "key", "value", "deleted", "created_at", "backup_id"),
        Index("ix_backup_tags_listed_of_key", "key", "deleted", "created_at", "backup_id"),
        # Half the work for a second tag: SQLite would look for the row's number first.
        {"sqlite_with_rowid": False},
    )

    backup_id: Mapped[str] = mapped_column(
        text(ID_LENGTH_MAX), ForeignKey("backup_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(text(TAG_KEY_LENGTH_MAX), primary_key=True)
    value: Mapped[str] = mapped_column(text(TAG_VALUE_LENGTH_MAX))
    deleted: Mapped[bool] = mapped_column(Boolean(), default=False)
    created_at: Mapped[datetime]
