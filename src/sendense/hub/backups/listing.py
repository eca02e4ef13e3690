"""Lists of backups: pages and totals, read from indexes as far as they go.

With 100,000 backups a page must not cost what the pages before it hold. Ids are chosen, counted and
leafed through in an index that holds all that a filter may ask; rows are read for one page.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from sendense.db.tables import BackupRow, BackupTagRow
from sendense.hub import paging
from sendense.hub.backups import shown
from sendense.hub.backups.schemas import BackupFilter
from sendense.hub.model import split_tag

LOOKED_UP = "ix_backup_jobs_looked_up"
RARE_ROWS = 5_000  # counted in a millisecond; tags that more have are looked up for no less
_Matching = tuple[type[BackupTagRow], list[ColumnElement[bool]]]
_Order = tuple[InstrumentedAttribute[datetime], InstrumentedAttribute[str]]


def list_backups(session: Session, wanted: BackupFilter) -> tuple[Sequence[Row[Any]], int]:
    """Return a page of backups as `shown.show` wants them, newest first, and how many in all."""
    chosen, order = _by_tags(session, wanted) if wanted.tag else _by_time(wanted)
    ids, total = paging.list_ids(
        session, chosen, newest_first=order, limit=wanted.limit, offset=wanted.offset
    )
    rows = session.execute(select(*shown.COLUMNS).where(BackupRow.id.in_(ids)))
    place = {backup_id: number for number, backup_id in enumerate(ids)}
    return sorted(rows, key=lambda row: place[row.backup_id]), total


def _by_time(wanted: BackupFilter) -> tuple[Select[str], _Order]:
    moment, deleted = BackupRow.created_at, BackupRow.deleted_at
    chosen = select(BackupRow.id).where(
        deleted.is_not(None) if wanted.deleted else deleted.is_(None),
        *_columns(wanted),
        *_times(moment, wanted),
    )
    return chosen, (moment, BackupRow.id)


def _by_tags(session: Session, wanted: BackupFilter) -> tuple[Select[str], _Order]:
    """Begin with the rarest tag, which knows the moment and the deletion; the rest is looked up."""
    first, *others = _sort_by_rarity(session, [_matching(text) for text in wanted.tag])
    tag, matches = first
    query = select(tag.backup_id).where(
        *matches, tag.deleted == wanted.deleted, *_times(tag.created_at, wanted)
    )
    for other, matches_too in others:
        query = query.join(other, other.backup_id == tag.backup_id).where(*matches_too)
    if conditions := _columns(wanted):
        query = query.join(BackupRow, BackupRow.id == tag.backup_id).where(*conditions)
        # MariaDB prefers its wide rows to the index that holds all that is asked.
        query = query.with_hint(BackupRow, f"FORCE INDEX ({LOOKED_UP})", "mariadb")
    return query, (tag.created_at, tag.backup_id)


def _sort_by_rarity(session: Session, tags: list[_Matching]) -> list[_Matching]:
    """Return tags with those first that few backups have; counting stops where it is no help.

    SQLite keeps no statistics: it looks up the second for each row of the first.
    """
    if len(tags) == 1:
        return tags

    def count(matching: _Matching) -> int:
        tag, matches = matching
        some = select(tag.backup_id).where(*matches).limit(RARE_ROWS).subquery()
        return session.scalar(select(func.count()).select_from(some)) or 0

    return sorted(tags, key=count)


def _matching(text: str) -> _Matching:
    key, value = split_tag(text)
    tag = aliased(BackupTagRow)
    matches = [tag.key == key]
    if value is not None:
        matches.append(tag.value == value)
    return tag, matches


def _columns(wanted: BackupFilter) -> list[ColumnElement[bool]]:
    return [
        column == value
        for column, value in (
            (BackupRow.vm_name, wanted.vm_name),
            (BackupRow.vm_id, wanted.vm_id),
            (BackupRow.repository_id, wanted.repository_id),
            (BackupRow.backup_type, wanted.backup_type),
            (BackupRow.status, wanted.status),
        )
        if value is not None
    ]


def _times(
    moment: InstrumentedAttribute[datetime], wanted: BackupFilter
) -> list[ColumnElement[bool]]:
    conditions = []
    if wanted.created_after is not None:
        conditions.append(moment >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(moment < wanted.created_before)
    return conditions
