"""The platforms we read VMs from."""

from datetime import datetime
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX, TEXT_LENGTH_MAX, WORD_LENGTH_MAX, Base


class SourceRow(Base):
    """A source as the user registered it."""

    __tablename__ = "sources"

    id: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), primary_key=True)
    # Identity of the platform itself; for platforms without one it is our own id.
    uuid: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), unique=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH_MAX), unique=True)
    type: Mapped[str] = mapped_column(String(WORD_LENGTH_MAX))
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    discovered_at: Mapped[datetime | None]
    # What the last test or discovery said; "" while all is well.
    trouble: Mapped[str] = mapped_column(String(TEXT_LENGTH_MAX), default="")
