"""Backups and chains as the API shows them: a contract with existing clients."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from sendense.connectors.base import ConsistencyWish
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.model import (
    Accepted,
    Answer,
    AskedMoment,
    DiskChoice,
    Failure,
    Id,
    Moment,
    Name,
    Page,
    Request,
    TagFilters,
    Tags,
    Text,
    explained,
)


class BackupType(StrEnum):
    """How a backup was read."""

    FULL = "full"
    INCREMENTAL = "incremental"


class RequestedType(StrEnum):
    """What a client may ask for."""

    FULL = "full"
    INCREMENTAL = "incremental"
    AUTO = "auto"


class StartBackup(Request):
    """Which VM to back up, and where to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "vm_name": "pgtest1",
                    "disk_id": 0,
                    "repository_id": "repo-local-1759780081",
                    "backup_type": "full",
                    "tags": {"test": "vm_disks_integration"},
                },
                {"vm_id": "vm-4f1cz0q8w2m6k9t3", "repository_id": "repo-local-1759780081"},
            ]
        }
    )

    vm_name: Annotated[Name | None, Field(description="Or vm_id; exactly one of them.")] = None
    vm_id: Annotated[Id | None, Field(description="Or vm_name; exactly one of them.")] = None
    disk_id: Annotated[
        DiskChoice | None,
        Field(
            description="Index or name of one disk. Left out, all disks are backed up from one "
            "snapshot, which is recommended: separate snapshots do not fit together."
        ),
    ] = None
    repository_id: Id
    backup_type: RequestedType = RequestedType.AUTO
    tags: Tags = Field(default_factory=dict)
    consistency: ConsistencyWish = ConsistencyWish.PREFER

    @model_validator(mode="after")
    def _names_one_vm(self) -> Self:
        if (self.vm_name is None) == (self.vm_id is None):
            raise ValueError("give exactly one of vm_name and vm_id")
        return self


class BackupAccepted(Accepted):
    """A backup was requested; it exists from now on."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "backup_id": "backup-pgtest1-20260102t030405z-x7k2",
                    "job_id": "backup-3n5v8r1t6y2u9i4o",
                    "status": "pending",
                    "backup_type": "full",
                    "type_reason": "a full read was requested",
                }
            ]
        }
    )

    backup_id: str
    backup_type: BackupType
    type_reason: str | None


class Skipped(Answer):
    """A disk that was left out, and why."""

    disk_id: str
    index: int
    reason: str


class HoldBackup(Request):
    """Why nobody may delete a backup."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"why": "case 7/2026"}]})

    why: Annotated[Text, Field(description="For people; the refusal to delete repeats it.")] = ""


class Hold(Answer):
    """Who holds a backup."""

    who: str
    why: str
    at: str


class BackupDisk(Answer):
    """One disk in one backup."""

    disk_id: str
    index: int
    label: str
    capacity_bytes: int
    change_id: str | None
    backup_type: BackupType
    type_reason: str | None
    status: JobStatus
    bytes_total: Annotated[int, Field(description="Bytes to read from the source.")]
    bytes_read: int
    bytes_new: int
    bytes_deduplicated: int


class Backup(Answer):
    """Everything about one backup."""

    backup_id: str
    job_id: str | None
    vm_id: str | None
    vm_name: str
    repository_id: str
    backup_type: BackupType
    requested_type: RequestedType
    type_reason: str | None
    status: JobStatus
    partial: Annotated[bool, Field(description="Completed, but had to leave a disk out.")]
    skipped: list[Skipped]
    warnings: list[str]
    consistency: str | None
    tags: dict[str, str]
    parent_backup_id: str | None
    created_at: Moment
    started_at: Moment | None
    completed_at: Moment | None
    deleted_at: Moment | None
    imported_at: Annotated[
        Moment | None,
        Field(description="When the catalog got it from its repository; null: made by this hub."),
    ]
    immutable_until: Annotated[
        Moment | None, Field(description="Nobody deletes it before; null: there is no such date.")
    ]
    hold: Annotated[
        Hold | None, Field(description="Who holds it: nobody deletes it until it is released.")
    ]
    progress_percent: float
    current_phase: str
    bytes_read: int
    bytes_new: int
    bytes_deduplicated: int
    bytes_transferred: Annotated[int, Field(description="The same as bytes_read.")]
    bytes_to_read: Annotated[int | None, Field(description="Null until it is known.")]
    total_bytes: Annotated[int, Field(description="Size of the disks in the backup.")]
    transfer_speed_bps: Annotated[float | None, Field(description="Bytes per second.")]
    seconds_left: float | None
    verification: Annotated[None, Field(description="Null: never verified.")] = None
    error: Failure | None
    disks: list[BackupDisk]


class BackupList(Answer):
    """A page of backups, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"backups": [], "total": 0}]})

    backups: list[Backup]
    total: int


class Chain(Answer):
    """The live backups of one disk in one repository, oldest first."""

    chain_id: str
    vm_id: str
    vm_name: str
    disk_id: str
    repository_id: str
    full_backup_id: str
    latest_backup_id: str
    backups: list[Backup]
    total_backups: int
    total_size_bytes: Annotated[int, Field(description="Bytes that its backups added.")]


class ChainList(Answer):
    """Several disks or repositories, and no filter that names one."""

    chains: list[Chain]


class BackupDeleted(Answer):
    """A backup is gone; its space comes back with the next collection of garbage."""

    backup_id: str
    deleted_at: Moment


class BackupFilter(Page):
    """Which backups to list."""

    vm_name: Text | None = None
    vm_id: Text | None = None
    repository_id: Text | None = None
    backup_type: BackupType | None = None
    status: JobStatus | None = None
    tag: TagFilters = Field(default_factory=list)
    created_after: AskedMoment | None = None
    created_before: AskedMoment | None = None
    deleted: Annotated[bool, Field(description="List what was deleted instead.")] = False


class ChainFilter(Request):
    """Which of a VM's chains to show."""

    disk_id: Annotated[
        str | None,
        Field(
            pattern=r"^([0-9]{1,4}|disk-[0-9]{1,9})$",
            description="Index or name of a disk.",
            examples=["0", "disk-2000"],
        ),
        explained("must be the index of a disk (0, 1, 2 …) or its name, such as disk-2000"),
    ] = None
    repository_id: Text | None = None

    @property
    def disk(self) -> int | str | None:
        """The disk as index or name."""
        if self.disk_id is None or not self.disk_id.isdigit():
            return self.disk_id
        return int(self.disk_id)
