"""The tables of the catalog, one file each; importing this package knows them all.

The order of a backup's rows is held by foreign keys: jobs → backup_jobs → backup_disks →
backup_chains.
"""

from sendense.db.tables.backup_chains import ChainRow
from sendense.db.tables.backup_disks import BackupDiskRow
from sendense.db.tables.backup_jobs import BackupRow
from sendense.db.tables.backup_repositories import RepositoryRow
from sendense.db.tables.backup_tags import BackupTagRow
from sendense.db.tables.hub import HubRow
from sendense.db.tables.idempotency_keys import IdempotencyRow
from sendense.db.tables.jobs import JobRow
from sendense.db.tables.restores import RestoreRow
from sendense.db.tables.sources import SourceRow
from sendense.db.tables.vm_contexts import VmRow
from sendense.db.tables.vm_disks import DiskRow
from sendense.db.tables.workers import JobEngineRow, TakeOverRow, WorkerRow

__all__ = [
    "BackupDiskRow",
    "BackupRow",
    "BackupTagRow",
    "ChainRow",
    "DiskRow",
    "HubRow",
    "IdempotencyRow",
    "JobEngineRow",
    "JobRow",
    "RepositoryRow",
    "RestoreRow",
    "SourceRow",
    "TakeOverRow",
    "VmRow",
    "WorkerRow",
]
