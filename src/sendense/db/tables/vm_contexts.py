"""The VMs under management."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX, WORD_LENGTH_MAX, Base, text

PATH_LENGTH_MAX = 1024


class VmRow(Base):
    """A VM; known again by its platform's identity and its own, whatever its name."""

    __tablename__ = "vm_contexts"
    __table_args__ = (UniqueConstraint("source_uuid", "vm_uuid"),)

    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.id"), index=True)
    source_uuid: Mapped[str] = mapped_column(text(ID_LENGTH_MAX))
    vm_uuid: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX))
    name: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX), index=True)
    path: Mapped[str | None] = mapped_column(text(PATH_LENGTH_MAX))
    power_state: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    guest_os: Mapped[str | None] = mapped_column(text(NAME_LENGTH_MAX))
    cpu_count: Mapped[int | None]
    memory_bytes: Mapped[int | None]
    networks: Mapped[list[Any] | None]
    tags: Mapped[dict[str, str]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    # Set when a discovery no longer finds the VM on its source; its backups stay.
    gone_at: Mapped[datetime | None]
