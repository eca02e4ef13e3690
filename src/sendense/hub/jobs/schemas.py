"""Jobs as the API shows them."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from sendense.hub.model import Answer, AskedMoment, Failure, Moment, Page, Text


class JobStatus(StrEnum):
    """Where a job is; of backups and restores too."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_active(self) -> bool:
        """Whether it may still change anything."""
        return self in ACTIVE


ACTIVE = frozenset({JobStatus.PENDING, JobStatus.RUNNING})


class JobKind(StrEnum):
    """What a job does."""

    BACKUP = "backup"
    RESTORE = "restore"
    DISCOVERY = "discovery"
    CHECK = "check"
    IMPORT = "import"
    GC = "gc"
    VERIFY = "verify"
    HUB_EXPORT = "hub_export"


class Step(Answer):
    """One step of a job."""

    name: str
    status: JobStatus
    started_at: str | None = None
    completed_at: str | None = None
    error: Failure | None = None


class LogLine(Answer):
    """Something a job had to say."""

    at: str
    level: str
    message: str


class Job(Answer):
    """A job."""

    job_id: str
    kind: JobKind
    status: JobStatus
    progress_percent: float
    current_phase: str
    waiting_reason: Annotated[
        str | None, Field(description="Why nobody works on it though it could go on, or null.")
    ]
    required_labels: Annotated[
        dict[str, str], Field(description="Labels that the worker must have that runs it.")
    ]
    bytes_total: int | None = None
    bytes_done: int | None = None
    bytes_new: int | None = None
    bytes_deduplicated: int | None = None
    transfer_speed_bps: float | None = None
    seconds_left: float | None = None
    cancel_requested: bool
    attempts: int
    error: Failure | None
    result: dict[str, Any] | None
    subject: Annotated[dict[str, Any], Field(examples=[{"backup_id": "backup-web1-…"}])]
    retry_of: str | None
    created_at: Moment
    started_at: Moment | None
    completed_at: Moment | None
    updated_at: Moment


class JobDetail(Job):
    """A job with what it did."""

    steps: list[Step]
    log: list[LogLine]


class JobList(Answer):
    """A page of jobs, newest first."""

    jobs: list[Job]
    total: int


class JobFilter(Page):
    """Which jobs to list."""

    status: JobStatus | None = None
    kind: JobKind | None = None
    source_id: Text | None = None
    repository_id: Text | None = None
    created_after: AskedMoment | None = None
    created_before: AskedMoment | None = None
