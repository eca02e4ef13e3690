"""The places that hold backups."""

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import (
    ID_LENGTH_MAX,
    NAME_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    WORD_LENGTH_MAX,
    Base,
    text,
)


class RepositoryRow(Base):
    """A repository as the user registered it."""

    __tablename__ = "backup_repositories"

    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    # The id inside the repository itself: one repository is registered at most once.
    uuid: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), unique=True)
    name: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX), unique=True)
    type: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    config: Mapped[dict[str, Any]]
    # Labels that a worker must have to reach it; null where any worker can.
    required_labels: Mapped[dict[str, str] | None]
    enabled: Mapped[bool] = mapped_column(Boolean(), default=True)
    chunk_size: Mapped[int]
    # The key domain of an encrypted repository, and its root key, sealed; null where it is not
    # encrypted. Without the sealed key, somebody has to give it again.
    domain: Mapped[str | None] = mapped_column(text(WORD_LENGTH_MAX))
    sealed_key: Mapped[dict[str, Any] | None]
    capacity_bytes: Mapped[int | None]
    free_bytes: Mapped[int | None]
    used_bytes: Mapped[int | None]
    # When the figures above were taken, and what was wrong then; "" while all is well.
    measured_at: Mapped[datetime | None]
    trouble: Mapped[str] = mapped_column(text(TEXT_LENGTH_MAX), default="")
    # Backups in it that the catalog does not know, as last counted; null before.
    foreign_backups: Mapped[int | None]
    # As the repository's descriptor says; None for 0 days.
    immutable_days: Mapped[int | None]
    lock_mode: Mapped[str | None] = mapped_column(text(WORD_LENGTH_MAX))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
