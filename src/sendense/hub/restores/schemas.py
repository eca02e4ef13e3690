"""Restores as the API shows them."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictStr, StringConstraints

from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.model import (
    PATH_LENGTH_MAX,
    Accepted,
    Answer,
    DiskChoice,
    Failure,
    Id,
    LabelValue,
    Moment,
    Page,
    Request,
    Text,
)


class TargetType(StrEnum):
    """Where a restore writes to."""

    FILE = "file"
    VM = "vm"


class FileFormat(StrEnum):
    """How an image file is laid out."""

    RAW = "raw"
    QCOW2 = "qcow2"


class FileTarget(Request):
    """A file on the worker's machine."""

    type: Literal[TargetType.FILE]
    path: Annotated[StrictStr, StringConstraints(min_length=1, max_length=PATH_LENGTH_MAX)]
    format: FileFormat = FileFormat.RAW
    host: Annotated[
        LabelValue | None,
        Field(description="The machine whose worker writes it; left out, any that can read."),
    ] = None


class VmTarget(Request):
    """A disk of a VM that is off, of the very same size: all of it is overwritten."""

    type: Literal[TargetType.VM]
    vm_id: Id
    disk_id: Annotated[
        DiskChoice | None,
        Field(description="Index or name; left out, the disk of the backup's own name."),
    ] = None


class StartRestore(Request):
    """Which disk of which backup to write, and where to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "backup_id": "backup-pgtest1-20260102t030405z-x7k2",
                    "disk_id": 0,
                    "target": {"type": "file", "path": "/srv/restored.raw", "format": "raw"},
                }
            ]
        }
    )

    backup_id: Id
    disk_id: Annotated[
        DiskChoice | None,
        Field(description="Index or name; may be left out where the backup holds one disk."),
    ] = None
    target: Annotated[FileTarget | VmTarget, Field(discriminator="type")]
    overwrite: Annotated[
        StrictBool,
        Field(description="Replace an existing file or a VM's disk; else it is a conflict."),
    ] = False


class RestoreAccepted(Accepted):
    """A restore was started."""

    restore_id: str


class FileShown(Answer):
    """The file that a restore writes."""

    type: Literal[TargetType.FILE]
    path: str
    format: FileFormat
    host: str | None = None


class VmShown(Answer):
    """The disk of a VM that a restore overwrites."""

    type: Literal[TargetType.VM]
    vm_id: str
    vm_name: str
    disk_id: str


class Restore(Answer):
    """A restore."""

    restore_id: str
    job_id: str | None
    backup_id: str
    disk_id: str
    target: Annotated[FileShown | VmShown, Field(discriminator="type")]
    overwrite: bool
    status: JobStatus
    progress_percent: float
    current_phase: str
    bytes_written: int
    total_bytes: Annotated[int, Field(description="Size of the disk.")]
    transfer_speed_bps: float | None
    seconds_left: float | None
    created_at: Moment
    started_at: Moment | None
    completed_at: Moment | None
    error: Failure | None


class RestoreList(Answer):
    """A page of restores, newest first."""

    restores: list[Restore]
    total: int


class RestoreFilter(Page):
    """Which restores to list."""

    backup_id: Text | None = None
    status: JobStatus | None = None
