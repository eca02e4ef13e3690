"""The hub's own key: exports are sealed with it, and its text is the hub's recovery key.

It lies in the catalog, sealed as credentials are, so that every worker has it.
"""

from datetime import datetime

from sqlalchemy.orm import Session

from sendense.core.ids import IdSource
from sendense.db.catalog import Catalog
from sendense.db.tables import HubRow
from sendense.durable import identity
from sendense.hub.sealing import Vault
from sendense.hub.sources import queries as sources
from sendense.repository.keys import ROOT_LENGTH


def get_or_make(catalog: Catalog, vault: Vault, ids: IdSource) -> tuple[str, bytes]:
    """Return the hub's name and its key, which the first call makes.

    Raises what `Vault.open_root_key` does.
    """
    name = identity.find_hub(catalog, ids)
    with catalog.read() as session:
        kept = _row(session).sealed_key
    if kept is None:
        with catalog.write() as session:
            row = _row(session)
            if row.sealed_key is None:  # another process may have been faster
                row.sealed_key = vault.seal_root_key(
                    ids.random_bytes(ROOT_LENGTH),
                    name,
                    may_make_key=not sources.is_any_sealed(session, but=""),
                )
            kept = row.sealed_key
    return name, vault.open_root_key(kept, name)


def is_shown(catalog: Catalog) -> bool:
    """Return whether anybody has seen the recovery key yet."""
    with catalog.read() as session:
        return _row(session).key_shown_at is not None


def note_shown(catalog: Catalog, *, now: datetime) -> None:
    """Remember that somebody has seen the recovery key."""
    with catalog.write() as session:
        _row(session).key_shown_at = now


def _row(session: Session) -> HubRow:
    row = session.get(HubRow, identity.ONLY)
    assert row is not None, "find_hub makes it"
    return row
