"""VMs and disks as the API shows them."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from sendense.connectors.base import Tracking
from sendense.hub.model import Answer, DiskChoice, Moment, Page, Request, TagFilters, Tags, Text

EXCLUDED_DISKS_MAX = 1000  # more than any platform attaches to a VM


class PowerState(StrEnum):
    """Whether a VM runs, as its source says."""

    ON = "on"
    OFF = "off"
    PAUSED = "paused"
    UNKNOWN = "unknown"


class Disk(Answer):
    """A disk as the last discovery saw it."""

    disk_id: str
    index: int
    label: str
    uuid: str
    capacity_bytes: Annotated[int | None, Field(description="Null: the source could not tell.")]
    datastore: str | None
    job_id: str | None
    excluded: bool
    excluded_reason: str | None
    tracking: Tracking
    present: Annotated[bool, Field(description="False: the VM no longer has it.")]


class DiskList(Answer):
    """The disks of a VM in the order of their index."""

    disks: list[Disk]
    total: int


class Vm(Answer):
    """A VM."""

    id: str
    name: str
    source_id: str
    uuid: str
    path: str | None
    power_state: str
    cpu_count: int | None
    memory_bytes: int | None
    guest_os: str | None
    networks: list[str]
    tags: dict[str, str]
    disk_count: int
    protected: Annotated[bool, Field(description="At least one completed backup exists.")]
    last_backup_at: Moment | None
    present: Annotated[bool, Field(description="False: its source no longer has it.")]
    active_job_id: str | None
    created_at: Moment
    seen_at: Moment


class VmList(Answer):
    """A page of VMs in the order of their names."""

    vms: list[Vm]
    total: int


class ChangeVm(Request):
    """What a user may set of a VM."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tags": {"tier": "gold"}, "excluded_disks": [1]}]}
    )

    tags: Annotated[Tags | None, Field(description="Replaces all tags.")] = None
    excluded_disks: Annotated[
        list[DiskChoice] | None,
        Field(
            max_length=EXCLUDED_DISKS_MAX,
            description="Disks that backups of all disks leave out; replaces the former list.",
        ),
    ] = None


class DiskReadiness(Answer):
    """Whether the next backup of a disk can be incremental."""

    disk_id: str
    index: int
    backup_possible: bool
    incremental_possible: bool
    reason: str | None


class Readiness(Answer):
    """Whether a VM can be backed up, and incrementally, and if not, why."""

    vm_id: str
    repository_id: str | None
    backup_possible: bool
    incremental_possible: bool
    consistent_possible: Annotated[
        bool | None,
        Field(
            description="Whether file systems can be frozen at the moment of the snapshot; null:"
            " its source was not asked, or cannot tell."
        ),
    ]
    reasons: list[str]
    missing_privileges: Annotated[
        list[str],
        Field(description="What the source's user lacks, by the platform's own names."),
    ]
    notes: Annotated[
        list[str], Field(description="What else may matter: what a backup will do or meet.")
    ]
    asked: Annotated[
        bool, Field(description="Whether the source itself was asked, beyond its last discovery.")
    ]
    disks: list[DiskReadiness]


class VmFilter(Page):
    """Which VMs to list."""

    q: Annotated[Text | None, Field(description="Text in name, path or guest.")] = None
    name: Text | None = None
    source_id: Text | None = None
    power_state: PowerState | None = None
    tag: TagFilters = Field(default_factory=list)
    protected: bool | None = None
    present: bool | None = None
