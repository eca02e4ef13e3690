"""The workers that are alive, and how often a job had to be taken over from one that died."""

from sqlalchemy import Double, String
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX, Base


class WorkerRow(Base):
    """A worker's lease.

    Both times are seconds since 1970 by the database's clock, so that workers with different
    clocks agree on who is alive.
    """

    __tablename__ = "workers"

    # Unique for each start of a worker; the engine's executor id.
    id: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), primary_key=True)
    host: Mapped[str] = mapped_column(String(NAME_LENGTH_MAX))
    pid: Mapped[int]
    started_at: Mapped[float] = mapped_column(Double())
    beat_at: Mapped[float] = mapped_column(Double())


class TakeOverRow(Base):
    """Take-overs of a job since it last made durable progress; no row means none."""

    __tablename__ = "take_overs"

    # No foreign key: clean-up workflows are counted too, and they are no jobs.
    job_id: Mapped[str] = mapped_column(String(ID_LENGTH_MAX), primary_key=True)
    count: Mapped[int]
