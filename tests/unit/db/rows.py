"""Rows to write, and which rule of a database a refused one breaks."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import IntegrityError

from sendense.db.catalog import Catalog
from sendense.db.tables import (
    BackupDiskRow,
    BackupRow,
    ChainRow,
    JobRow,
    RepositoryRow,
    SourceRow,
    VmRow,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FOREIGN_KEY, UNIQUE, NOT_NULL = "foreign key", "unique", "not null"
_RULES: dict[object, str] = {
    # SQLite's extended codes, PostgreSQL's SQL states, MariaDB's error numbers.
    787: FOREIGN_KEY,
    1555: UNIQUE,
    2067: UNIQUE,
    1299: NOT_NULL,
    "23503": FOREIGN_KEY,
    "23505": UNIQUE,
    "23502": NOT_NULL,
    1451: FOREIGN_KEY,
    1452: FOREIGN_KEY,
    1062: UNIQUE,
    1048: NOT_NULL,
}


def broken_rule(error: IntegrityError) -> str:
    """Return the rule that a refused row breaks."""
    raw: Any = error.orig
    number = getattr(raw, "sqlite_errorcode", raw.args[0])
    return _RULES[number if isinstance(number, int) else raw.sqlstate]


def source(name: str = "lab", **changes: Any) -> SourceRow:
    fields: dict[str, Any] = {
        "id": f"source-{name}",
        "uuid": f"source-{name}",
        "name": name,
        "type": "image",
        "config": {},
        "created_at": NOW,
        "updated_at": NOW,
        "trouble": "",
    }
    return SourceRow(**{**fields, **changes})


def repository(**changes: Any) -> RepositoryRow:
    fields: dict[str, Any] = {
        "id": "repo-1",
        "uuid": "uuid",
        "name": "main",
        "type": "local",
        "config": {},
        "chunk_size": 1,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return RepositoryRow(**{**fields, **changes})


def vm(vm_id: str = "vm-1", **changes: Any) -> VmRow:
    fields: dict[str, Any] = {
        "source_id": "source-lab",
        "source_uuid": "s",
        "vm_uuid": vm_id,
        "name": "web",
        "power_state": "on",
        "created_at": NOW,
        "seen_at": NOW,
    }
    return VmRow(id=vm_id, **{**fields, **changes})


def job(job_id: str, slot: str | None = None, **changes: Any) -> JobRow:
    fields: dict[str, Any] = {
        "kind": "backup",
        "status": "running",
        "priority": 1,
        "subject": {},
        "vm_slot": slot,
        "current_phase": "x",
        "created_at": NOW,
        "updated_at": NOW,
    }
    return JobRow(id=job_id, **{**fields, **changes})


def backup(backup_id: str = "backup-1", **changes: Any) -> BackupRow:
    fields: dict[str, Any] = {
        "vm_id": "vm-1",
        "vm_name": "web",
        "repository_id": "repo-1",
        "requested_type": "auto",
        "backup_type": "full",
        "status": "completed",
        "consistency_wish": "prefer",
        "created_at": NOW,
    }
    return BackupRow(id=backup_id, **{**fields, **changes})


def disk(backup_id: str = "backup-1", **changes: Any) -> BackupDiskRow:
    fields: dict[str, Any] = {
        "disk_id": "disk-2000",
        "key": 2000,
        "index": 0,
        "label": "",
        "uuid": "u",
        "capacity_bytes": 1,
        "backup_type": "full",
        "status": "completed",
    }
    return BackupDiskRow(backup_id=backup_id, **{**fields, **changes})


def chain(backup_id: str = "backup-1", **changes: Any) -> ChainRow:
    fields: dict[str, Any] = {
        "vm_id": "vm-1",
        "disk_id": "disk-2000",
        "key": 2000,
        "repository_id": "repo-1",
        "full_backup_id": backup_id,
        "latest_backup_id": backup_id,
        "total_backups": 1,
        "total_size_bytes": 1,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return ChainRow(id="chain-1", **{**fields, **changes})


def add_surroundings(catalog: Catalog) -> None:
    """Write what a backup refers to."""
    with catalog.write() as session:
        session.add_all([source(), repository()])
        session.flush()
        session.add(vm())
