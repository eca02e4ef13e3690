"""The workers that are alive, what had to be taken over from dead ones, and their job engine."""

from sqlalchemy import Double
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX, WORD_LENGTH_MAX, Base, text


class WorkerRow(Base):
    """A worker's lease.

    Both times are seconds since 1970 by the database's clock, so that workers with different
    clocks agree on who is alive.
    """

    __tablename__ = "workers"

    # Unique for each start of a worker; the engine's executor id.
    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    host: Mapped[str] = mapped_column(text(NAME_LENGTH_MAX))
    pid: Mapped[int]
    # Null where the worker is older than labels.
    labels: Mapped[dict[str, str] | None]
    version: Mapped[str | None] = mapped_column(text(WORD_LENGTH_MAX))
    started_at: Mapped[float] = mapped_column(Double())
    beat_at: Mapped[float] = mapped_column(Double())


class TakeOverRow(Base):
    """Take-overs of a job since it last made durable progress; no row means none."""

    __tablename__ = "take_overs"

    # No foreign key: clean-up workflows are counted too, and they are no jobs.
    job_id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    count: Mapped[int]


class JobEngineRow(Base):
    """The job engine that the hub uses: one row. A worker of another engine would get no jobs."""

    __tablename__ = "job_engine"

    # What the engine's own database holds as its identity; see durable/identity.py.
    identity: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
