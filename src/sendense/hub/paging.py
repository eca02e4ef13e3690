"""One page of a long list, by ids that an index holds in the list's order."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

Column = ColumnElement[Any] | InstrumentedAttribute[Any]


def list_ids(
    session: Session,
    chosen: Select[str],
    *,
    newest_first: Sequence[Column],
    limit: int,
    offset: int,
) -> tuple[Sequence[str], int]:
    """Return the ids on a page, and how many there are in all.

    `chosen` selects ids in no order; they are sorted by the columns of `newest_first`, descending,
    which no two share. Pages behind the middle are leafed through from the end, so none costs more
    than half of all.
    """
    order = [column.desc() for column in newest_first]
    if offset == 0:
        # What fits on the first page need not be counted: that would cost the same once more.
        first = session.scalars(chosen.order_by(*order).limit(limit + 1)).all()
        is_all = len(first) <= limit
        return first[:limit], len(first) if is_all else _count(session, chosen)
    total = _count(session, chosen)
    count = min(limit, total - offset)
    if count <= 0:
        return [], total
    after = total - offset - count
    if offset <= after:
        return session.scalars(chosen.order_by(*order).limit(count).offset(offset)).all(), total
    ids = session.scalars(chosen.order_by(*newest_first).limit(count).offset(after)).all()
    return ids[::-1], total


def _count(session: Session, chosen: Select[str]) -> int:
    return session.scalar(select(func.count()).select_from(chosen.subquery())) or 0
