"""All workflows, by the names under which jobs are stored."""

from sendense.durable.definition import Workflow
from sendense.workflows.backup_vm import BACKUP_VM
from sendense.workflows.check_repository import CHECK_REPOSITORY
from sendense.workflows.clean_up import CLEAN_UP
from sendense.workflows.collect_garbage import COLLECT_GARBAGE
from sendense.workflows.context import Context
from sendense.workflows.discover_vms import DISCOVER_VMS
from sendense.workflows.export_hub import EXPORT_HUB
from sendense.workflows.import_repository import IMPORT_REPOSITORY
from sendense.workflows.restore_disk import RESTORE_DISK
from sendense.workflows.transfer_disk import TRANSFER_DISK
from sendense.workflows.verify_repository import VERIFY_REPOSITORY

WORKFLOWS: tuple[Workflow[Context], ...] = (
    BACKUP_VM,
    TRANSFER_DISK,
    RESTORE_DISK,
    DISCOVER_VMS,
    CHECK_REPOSITORY,
    IMPORT_REPOSITORY,
    COLLECT_GARBAGE,
    VERIFY_REPOSITORY,
    EXPORT_HUB,
    CLEAN_UP,
)
