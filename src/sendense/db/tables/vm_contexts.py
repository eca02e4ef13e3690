"""The VMs under management."""

from datetime import datetime

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX, WORD_LENGTH_MAX, Base

PATH_LENGTH_MAX = 1024


class VmRow(Base):
    """A VM; known again by its platform's identity and its own, whatever its name."""

    __tablename__ = "vm_contexts"
    __table_args__ = (UniqueConstraint("source_uuid", "vm_uuid"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.id"), index=True)
    source_uuid: Mapped[str] = mapped_column(String(ID_LENGTH_MAX))
    vm_uuid: Mapped[str] = mapped_column(String(NAME_LENGTH_MAX))
    name: Mapped[str] = mapped_column(String(NAME_LENGTH_MAX), index=True)
    path: Mapped[str | None] = mapped_column(String(PATH_LENGTH_MAX))
    power_state: Mapped[str] = mapped_column(String(WORD_LENGTH_MAX))
    guest_os: Mapped[str | None] = mapped_column(String(NAME_LENGTH_MAX))
    cpu_count: Mapped[int | None]
    memory_bytes: Mapped[int | None]
    tags: Mapped[dict[str, str]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    # Set when a discovery no longer finds the VM on its source; its backups stay.
    gone_at: Mapped[datetime | None]
