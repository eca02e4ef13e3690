"""Who this catalog's hub is."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import WORD_LENGTH_MAX, Base, text


class HubRow(Base):
    """The hub's name on platforms: one row, made once, which a copy of the catalog keeps.

    Snapshots carry it, so that a hub removes its own only.
    """

    __tablename__ = "hub"

    # Always 1: of two that make a name at once, one is refused.
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    # What seals the hub's exports, sealed as credentials are; None until the first export.
    sealed_key: Mapped[dict[str, Any] | None]
    key_shown_at: Mapped[datetime | None]
