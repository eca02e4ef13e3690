"""The places that hold backups."""

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, String
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX, TEXT_LENGTH_MAX, WORD_LENGTH_MAX, Base


class RepositoryRow(Base):
    """A repository as the user registered it."""

    __tablename__ = "backup_repositories"

    id: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), primary_key=True)
    # The id inside the repository itself: one repository is registered at most once.
    uuid: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), unique=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH_MAX), unique=True)
    type: Mapped[str] = mapped_column(String(WORD_LENGTH_MAX))
    config: Mapped[dict[str, Any]]
    enabled: Mapped[bool] = mapped_column(Boolean(), default=True)
    chunk_size: Mapped[int]
    capacity_bytes: Mapped[int | None]
    free_bytes: Mapped[int | None]
    used_bytes: Mapped[int | None]
    # When the figures above were taken, and what was wrong then; "" while all is well.
    measured_at: Mapped[datetime | None]
    trouble: Mapped[str] = mapped_column(String(TEXT_LENGTH_MAX), default="")
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
