"""Rows within a column: what comes out is what went in, on each database."""

from typing import Any

from sqlalchemy import select

from sendense.db.catalog import Catalog
from sendense.db.packed import packed, unpack
from sendense.db.tables import BackupDiskRow, BackupRow
from tests.unit.db import rows

TEXTS = ["", "a'b\"c\\d", "line\nbreak\ttab", "Zoë 雪 🖴", " blanks ", "%s :name {x}"]
DISKS_OF_ONE_BACKUP = 5_000  # more than any platform gives a VM; over a megabyte as text


def _ask(catalog: Catalog, *columns: Any) -> dict[str, list[list[Any]]]:
    disks = (
        select(packed(*columns)).where(BackupDiskRow.backup_id == BackupRow.id).scalar_subquery()
    )
    with catalog.read() as session:
        found = session.execute(select(BackupRow.id, disks.label("disks"))).all()
    return dict(zip((row.id for row in found), unpack(row.disks for row in found), strict=True))


def test_texts_numbers_and_nulls_come_out_as_they_went_in(catalog: Catalog) -> None:
    rows.add_surroundings(catalog)
    with catalog.write() as session:
        session.add_all([rows.backup("backup-many"), rows.backup("backup-none")])
        session.flush()
        for key, text in enumerate(TEXTS):
            told = {"disk_id": f"disk-{key}", "label": text, "capacity_bytes": (1 << 62) + key}
            session.add(rows.disk("backup-many", key=key, **told))

    found = _ask(
        catalog,
        BackupDiskRow.key,
        BackupDiskRow.label,
        BackupDiskRow.capacity_bytes,
        BackupDiskRow.type_reason,
    )

    assert found["backup-none"] == []
    assert sorted(found["backup-many"]) == [
        [key, text, (1 << 62) + key, None] for key, text in enumerate(TEXTS)
    ]


def test_no_row_is_cut_off(catalog: Catalog) -> None:
    rows.add_surroundings(catalog)
    with catalog.write() as session:
        session.add(rows.backup("backup-wide"))
        session.flush()
        for key in range(DISKS_OF_ONE_BACKUP):
            session.add(rows.disk("backup-wide", key=key, disk_id=f"disk-{key}", label="x" * 250))

    found = _ask(catalog, BackupDiskRow.key, BackupDiskRow.label)["backup-wide"]

    assert sorted(found) == [[key, "x" * 250] for key in range(DISKS_OF_ONE_BACKUP)]
