"""A catalog of many backups, as a hub has them after years: written at once, not by backups.

The rows are those that 200 VMs leave behind in 500 nights: several repositories, a full read each
month, failed and cancelled runs, deleted ones, tags, and one VM that was backed up more often.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from sendense.core import ids, units
from sendense.db.base import Base
from sendense.db.catalog import Catalog
from sendense.hub.backups import chains

BACKUPS = 100_000
DELETED = 5_000  # beside them: what is listed only by `deleted=true`
VMS = 200
LONG_CHAIN = 1_200  # backups of the first VM
REPOSITORIES = ("repo-a", "repo-b", "repo-c", "repo-offsite")
OFFSITE_EACH = 10  # every tenth backup goes to the second place
FULL_EACH = 30
BEGAN = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
NIGHT = timedelta(days=1)
DISK_BYTES = 40 * units.GIB
BATCH = 5_000  # rows in one statement: fits MariaDB's max_allowed_packet of 16 MiB

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Estate:
    """What was written, as far as questions need it.

    Attributes:
        backup_ids: those that are not deleted, oldest first.
    """

    long_vm_id: str
    vm_id: str
    vm_name: str
    began: datetime
    ended: datetime
    backup_ids: list[str] = field(repr=False)


def build(catalog: Catalog, *, backups: int = BACKUPS) -> Estate:
    """Fill an empty, migrated catalog. A smaller number keeps the proportions."""
    vms = max(10, VMS * backups // BACKUPS)
    rows: Rows = {table.name: [] for table in Base.metadata.sorted_tables}
    _add_places(rows)
    for number in range(vms):
        _add_vm(rows, number)
    deleted = DELETED * backups // BACKUPS
    runs = list(_list_runs(vms, backups + deleted, long=LONG_CHAIN * backups // BACKUPS))
    # Spread evenly; those of the first VM stay, whose chain is wanted long.
    candidates = [at for at, (vm, _) in enumerate(runs) if vm]
    gone = set(candidates[:: len(candidates) // deleted][:deleted])
    made: list[str] = []
    for at, (vm, night) in enumerate(runs):
        backup = _add_backup(rows, vm=vm, night=night, at=at, deleted=at in gone)
        if at not in gone:
            made.append(backup)
    _add_chains(rows)
    _write(catalog, rows)
    return Estate(
        long_vm_id=_vm_id(0),
        vm_id=_vm_id(1),
        vm_name=_vm_name(1),
        began=_moment(*runs[0]),
        ended=_moment(*runs[-1]),
        backup_ids=made,
    )


def _list_runs(vms: int, count: int, *, long: int) -> Iterator[tuple[int, int]]:
    """Yield VM and night of each backup, oldest first; the first VM has `long` of them."""
    others = count - long
    each, rest = divmod(others, vms - 1)
    amounts = [long] + [each + (vm <= rest) for vm in range(1, vms)]
    nights = max(amounts)
    for night in range(nights):
        for vm, amount in enumerate(amounts):
            if night >= nights - amount:
                yield vm, night


def _moment(vm: int, night: int) -> datetime:
    return BEGAN + night * NIGHT + timedelta(seconds=37 * vm, microseconds=vm * 977 + night)


def _vm_id(vm: int) -> str:
    return f"vm-{vm:016}"


def _vm_name(vm: int) -> str:
    return f"app{vm:03}.example.org"


def _stamp(moment: datetime) -> str:
    """Return a moment as all three databases read it."""
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


def _add_places(rows: Rows) -> None:
    common = {"created_at": _stamp(BEGAN), "updated_at": _stamp(BEGAN), "trouble": ""}
    for name in REPOSITORIES:
        rows["backup_repositories"].append(
            {
                "id": name,
                "uuid": f"uuid-{name}",
                "name": name,
                "type": "local",
                "config": json.dumps({"path": f"/backups/{name}"}),
                "enabled": True,
                "chunk_size": units.MIB,
                **common,
            }
        )
    rows["sources"].append(
        {
            "id": "source-1",
            "uuid": "uuid-source",
            "name": "lab",
            "type": "image",
            "config": json.dumps({"vms": []}),
            **common,
        }
    )


def _add_vm(rows: Rows, vm: int) -> None:
    seen = {"created_at": _stamp(BEGAN), "seen_at": _stamp(BEGAN)}
    rows["vm_contexts"].append(
        {
            "id": _vm_id(vm),
            "source_id": "source-1",
            "source_uuid": "uuid-source",
            "vm_uuid": f"uuid-{vm}",
            "name": _vm_name(vm),
            "path": f"/lab/{_vm_name(vm)}",
            "power_state": "on" if vm % 7 else "off",
            "tags": json.dumps({"env": _environment(vm)}),
            **seen,
        }
    )
    for index in range(_disk_count(vm)):
        rows["vm_disks"].append(
            {
                "id": vm * 10 + index + 1,
                "vm_id": _vm_id(vm),
                "disk_id": f"disk-{2000 + index}",
                "key": 2000 + index,
                "index": index,
                "label": f"Hard disk {index + 1}",
                "uuid": f"disk-uuid-{vm}-{index}",
                "capacity_bytes": DISK_BYTES,
                "tracking": "supported",
                "excluded": False,
                **seen,
            }
        )


def _disk_count(vm: int) -> int:
    return 2 if vm % 3 == 1 else 1


def _environment(vm: int) -> str:
    return ("prod", "prod", "test", "dev")[vm % 4]


def _add_backup(rows: Rows, *, vm: int, night: int, at: int, deleted: bool) -> str:
    created = _moment(vm, night)
    ended = created + timedelta(minutes=7, seconds=vm)
    backup_id = f"backup-{ids.slug(_vm_name(vm))}-{created:%Y%m%dt%H%M%Sz}-{at % 10_000:04}"
    status = "completed" if at % 40 else ("failed", "cancelled", "failed")[at // 40 % 3]
    error = {"kind": "source-away", "message": "the source does not answer", "hint": "look at it"}
    full = night % FULL_EACH == 0
    repository = REPOSITORIES[3] if vm and not (night + 1) % OFFSITE_EACH else REPOSITORIES[vm % 3]
    job_id = f"job-{at:016}"
    tags_ = {"env": _environment(vm), "policy": "monthly" if full else "nightly"}
    if at % 500 == 0:
        tags_["ticket"] = f"CHG-{at}"
    failure = None if status == "completed" else json.dumps(error)
    read = DISK_BYTES if full else DISK_BYTES // 100
    figures = {"bytes_read": read, "bytes_new": read // 3, "bytes_deduplicated": read // 2}
    begin, end = _stamp(created), _stamp(ended)
    times = {"created_at": begin, "started_at": begin}
    ends = {"finished_at": end, "updated_at": end, "status": status, "current_phase": status}
    _add_job(
        rows, job_id, backup_id, {"repository_id": repository, "error": failure} | times | ends
    )
    rows["backup_jobs"].append(
        {
            "id": backup_id,
            "job_id": job_id,
            "vm_id": _vm_id(vm),
            "vm_name": _vm_name(vm),
            "repository_id": repository,
            "requested_type": "auto",
            "backup_type": "full" if full else "incremental",
            "type_reason": "there is no earlier backup" if full else None,
            "status": status,
            "partial": False,
            "skipped": "[]",
            "warnings": "[]",
            "consistency_wish": "prefer",
            "consistency": "filesystem",
            "tags": json.dumps(tags_),
            "total_bytes": DISK_BYTES * _disk_count(vm),
            "error": failure,
            "completed_at": end,
            "moment": backup_id,
            "deleted_at": _stamp(ended + NIGHT) if deleted else None,
            **figures,
            **times,
        }
    )
    rows["backup_tags"].extend(
        {
            "backup_id": backup_id,
            "key": key,
            "value": value,
            "deleted": deleted,
            "created_at": begin,
        }
        for key, value in tags_.items()
    )
    _add_disks(rows, vm, rows["backup_jobs"][-1])
    return backup_id


def _add_job(rows: Rows, job_id: str, backup_id: str, facts: dict[str, Any]) -> None:
    rows["jobs"].append(
        {
            "id": job_id,
            "kind": "backup" if len(rows["jobs"]) % 25 else "discovery",
            "priority": 10,
            "subject": json.dumps({"backup_id": backup_id}),
            "source_id": "source-1",
            "progress_percent": 100.0,
            "progress": json.dumps({"bytes_total": DISK_BYTES, "bytes_done": DISK_BYTES}),
            "steps": _STEPS,
            "log": _LOG,
            "attempts": 1,
            "enqueued_at": facts["created_at"],
            **facts,
        }
    )


def _add_disks(rows: Rows, vm: int, backup: dict[str, Any]) -> None:
    names = ("backup_type", "type_reason", "status", "bytes_read", "bytes_new")
    shared = {name: backup[name] for name in (*names, "bytes_deduplicated")}
    for index in range(_disk_count(vm)):
        rows["backup_disks"].append(
            {
                "id": len(rows["backup_disks"]) + 1,
                "backup_id": backup["id"],
                "vm_disk_id": vm * 10 + index + 1,
                "disk_id": f"disk-{2000 + index}",
                "key": 2000 + index,
                "index": index,
                "label": f"Hard disk {index + 1}",
                "uuid": f"disk-uuid-{vm}-{index}",
                "capacity_bytes": DISK_BYTES,
                "change_id": f"52 de 3b c1 {backup['id']}/{index}",
                "root": "5e" * 32,
                "bytes_total": backup["bytes_read"],
                **shared,
            }
        )


_STEP = {"status": "completed", "started_at": "2026-01-01T22:00:00Z", "error": None}
_STEPS = json.dumps(
    [
        {"name": name, "completed_at": "2026-01-01T22:07:00Z", **_STEP}
        for name in ("plan", "take_snapshot", "decide", "transfer_disk", "commit", "record")
    ]
)
_LOG = json.dumps(
    [
        {"at": "2026-01-01T22:00:00Z", "level": "info", "message": f"line {number} of the log"}
        for number in range(6)
    ]
)


def _add_chains(rows: Rows) -> None:
    """Let each chain begin and end where its live backups do."""
    backups = {row["id"]: row for row in rows["backup_jobs"] if row["deleted_at"] is None}
    found: dict[str, dict[str, Any]] = {}
    for disk in rows["backup_disks"]:
        backup = backups.get(disk["backup_id"])
        if backup is None or disk["status"] != "completed":
            continue
        place = {"vm_id": backup["vm_id"], "key": disk["key"]}
        place["repository_id"] = backup["repository_id"]
        name = chains.chain_id(**place)
        chain = found.setdefault(
            name,
            {
                "id": name,
                "disk_id": disk["disk_id"],
                "full_backup_id": backup["id"],
                "total_backups": 0,
                "total_size_bytes": 0,
                "created_at": backup["created_at"],
                **place,
            },
        )
        chain["latest_backup_id"] = backup["id"]
        chain["updated_at"] = backup["completed_at"]
        chain["total_backups"] += 1
        chain["total_size_bytes"] += disk["bytes_new"]
    rows["backup_chains"].extend(found.values())


def _write(catalog: Catalog, rows: Rows) -> None:
    """Insert by the fastest way of each database; the order of tables is that of their keys."""
    quote = catalog.engine.dialect.identifier_preparer.quote
    with catalog.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -400000")  # KiB: all its indexes
        for table in Base.metadata.sorted_tables:
            found = rows[table.name]
            if found:
                names = list(dict.fromkeys(name for row in found for name in row))
                columns = ", ".join(quote(name) for name in names)
                values = [tuple(row.get(name) for name in names) for row in found]
                _insert(connection, f"{quote(table.name)} ({columns})", values)
    _tell_planner(catalog)


def _insert(connection: Connection, into: str, values: list[tuple[Any, ...]]) -> None:
    driver: Any = connection.connection.driver_connection
    cursor = driver.cursor()
    if connection.dialect.name == "postgresql":
        with cursor.copy(f"COPY {into} FROM STDIN") as copy:
            for row in values:
                copy.write_row(row)
    else:
        mark = "?" if connection.dialect.name == "sqlite" else "%s"
        places = ", ".join([mark] * len(values[0]))
        for begin in range(0, len(values), BATCH):
            statement = f"INSERT INTO {into} VALUES ({places})"  # noqa: S608 - our own names
            cursor.executemany(statement, values[begin : begin + BATCH])
    cursor.close()


def _tell_planner(catalog: Catalog) -> None:
    """Do at once what the servers do by themselves within minutes after so many inserts."""
    dialect = catalog.engine.dialect.name
    with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if dialect == "postgresql":
            connection.exec_driver_sql("VACUUM ANALYZE")
        elif dialect in {"mysql", "mariadb"}:
            names = ", ".join(table.name for table in Base.metadata.sorted_tables)
            connection.exec_driver_sql(f"ANALYZE TABLE {names}").fetchall()
