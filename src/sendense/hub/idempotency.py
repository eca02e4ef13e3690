"""A request sent twice with one `Idempotency-Key` starts its work once.

The answer is kept in the same transaction as the work, so that there is never one without the
other. Of two such requests at once the second waits for the first and gets its answer.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from pydantic import StringConstraints
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sendense.core.errors import Conflict
from sendense.db.tables import IdempotencyRow
from sendense.hub.context import Hub
from sendense.hub.model import Answer, explained

A = TypeVar("A", bound=Answer)

Key = Annotated[
    str,
    StringConstraints(pattern=r"^[\x21-\x7e]{1,255}$"),
    explained("must be 1 to 255 visible ASCII characters"),
]
KEEP = timedelta(days=7)  # nobody repeats a request for longer
_TRIES = 2  # the second sees what the other transaction committed; a third would hide a bug


@dataclass(frozen=True, slots=True)
class Keyed:
    """A request's key, if it has one, and a hash of what it asks for."""

    key: str | None
    request_hash: str


async def read_key(
    request: Request,
    idempotency_key: Annotated[
        Key | None,
        Header(
            description="Any text of up to 255 visible ASCII characters. The same request with "
            "the same key gets the first answer again and starts nothing."
        ),
    ] = None,
) -> Keyed:
    """Return the request's key; bodies that differ only in spaces or order are the same."""
    body = await request.body()
    plain = json.dumps(json.loads(body), sort_keys=True) if body else ""
    text = f"{request.method}\n{request.url.path}\n{plain}"
    return Keyed(idempotency_key, hashlib.sha256(text.encode()).hexdigest())


KeyOf = Annotated[Keyed, Depends(read_key)]


def find_answer(session: Session, keyed: Keyed, kind: type[A]) -> A | None:
    """Return the answer already given, or None.

    Raises Conflict, kind `idempotency-key-reused`, where the key came with another request.
    """
    row = session.get(IdempotencyRow, keyed.key) if keyed.key is not None else None
    if row is None:
        return None
    if row.request_hash != keyed.request_hash:
        raise Conflict(
            f"idempotency key {keyed.key} was used for another request",
            kind="idempotency-key-reused",
            hint="use a new key for each new request",
        )
    return kind.model_validate(row.answer)


def run_once(hub: Hub, keyed: Keyed, kind: type[A], work: Callable[[Session], A]) -> tuple[A, bool]:
    """Do the work in one transaction and keep its answer; or return the answer kept before.

    The second value says whether the work was done now. A unique column may refuse what another
    request committed meanwhile; then the work is tried again, and finds the other's rows.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _try_once(hub, keyed, kind, work)
        except IntegrityError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _try_once(
    hub: Hub, keyed: Keyed, kind: type[A], work: Callable[[Session], A]
) -> tuple[A, bool]:
    with hub.catalog.write() as session:
        known = find_answer(session, keyed, kind)
        if known is not None:
            return known, False
        answer = work(session)
        if keyed.key is not None:
            now = hub.clock.now()
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now - KEEP))
            session.add(
                IdempotencyRow(
                    key=keyed.key,
                    request_hash=keyed.request_hash,
                    answer=answer.model_dump(mode="json"),
                    created_at=now,
                )
            )
    return answer, True
