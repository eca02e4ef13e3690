"""One execution of any kind that a user can see and cancel."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import FLOAT, ID_LENGTH_MAX, WORD_LENGTH_MAX, Base, text


class JobRow(Base):
    """A job: the truth for API and people; the engine's own tables are plumbing.

    `vm_slot` holds the VM's id while the job is pending or running and null after: being unique,
    it lets one job at a time work on a VM, on every database.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "status", "created_at"),
        Index(
            "ix_jobs_listed",
            *("created_at", "id", "status", "kind", "source_id", "repository_id"),
        ),
    )

    id: Mapped[str] = mapped_column(text(ID_LENGTH_MAX), primary_key=True)
    kind: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    status: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    priority: Mapped[int]
    # Ids of what the job is about, e.g. {"backup_id": …}; the workflow's input too: no secrets.
    subject: Mapped[dict[str, Any]]
    vm_slot: Mapped[str | None] = mapped_column(text(ID_LENGTH_MAX), unique=True)
    source_id: Mapped[str | None] = mapped_column(
        ForeignKey("sources.id", ondelete="SET NULL"), index=True
    )
    repository_id: Mapped[str | None] = mapped_column(
        ForeignKey("backup_repositories.id", ondelete="SET NULL"), index=True
    )
    # What source and repository demanded when the job was asked for; null where nothing.
    required_labels: Mapped[dict[str, str] | None]
    retry_of: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    current_phase: Mapped[str] = mapped_column(text(WORD_LENGTH_MAX))
    progress_percent: Mapped[float] = mapped_column(FLOAT, default=0.0)
    # Bytes, rate and seconds left, as the engine counts them; see hub/jobs/schemas.py.
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    steps: Mapped[list[Any]] = mapped_column(default=list)
    log: Mapped[list[Any]] = mapped_column(default=list)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    # How to find the hypervisor's snapshot again from another process.
    snapshot: Mapped[dict[str, Any] | None]
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested_at: Mapped[datetime | None]
    # Null until the engine has it: a sweep hands over what a crash left behind.
    enqueued_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(index=True)
