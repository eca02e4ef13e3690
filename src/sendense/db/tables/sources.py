"""The platforms we read VMs from."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import (
    ID_LENGTH_MAX,
    NAME_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    WORD_LENGTH_MAX,
    Base,
    text,
)


class SourceRow(Base):
    """A source as the user registered it."""

    __tablename__ = "sources"

    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    # Identity of the platform itself; for platforms without one it is our own id.
    uuid: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), unique=True)
    name: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX), unique=True)
    type: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    config: Mapped[dict[str, Any]]
    # What the platform is logged in with, sealed by a key that is not in the database; or null.
    credentials: Mapped[dict[str, Any] | None]
    # Labels that a worker must have to reach it; null where any worker can.
    required_labels: Mapped[dict[str, str] | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    discovered_at: Mapped[datetime | None]
    # What the last test or discovery said; "" while all is well.
    trouble: Mapped[str] = mapped_column(text(TEXT_LENGTH_MAX), default="")
