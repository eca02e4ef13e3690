"""Root keys of encrypted repositories: as users give them, and as the catalog keeps them."""

from sqlalchemy.orm import Session

from sendense.db.tables import RepositoryRow
from sendense.hub.context import Hub
from sendense.hub.repositories.schemas import PlaceConfig, UnlockRepository
from sendense.hub.sources import queries as sources
from sendense.repository import keys, recipients, recovery
from sendense.repository.storage.base import Storage


def open_given(storage: Storage, given: PlaceConfig | UnlockRepository) -> bytes | None:
    """Return the root key that a recovery key is, or that a passphrase opens; None for neither."""
    if given.recovery_key is not None:
        return recovery.parse(given.recovery_key.get_secret_value())
    if given.passphrase is not None:
        return recipients.open_by_passphrase(storage, given.passphrase.get_secret_value())
    return None


def find(hub: Hub, row: RepositoryRow) -> bytes | None:
    """Return a repository's root key, or None where it is not encrypted.

    Raises Conflict and others as `Vault.open_root_key` does.
    """
    if row.sealed_key is None:
        return None
    return hub.vault.open_root_key(row.sealed_key, row.uuid)


def keep(session: Session, hub: Hub, row: RepositoryRow, root_key: bytes | None) -> None:
    """Seal a root key into its row; None leaves the row alone."""
    if root_key is None:
        return
    row.domain = keys.derive_domain(root_key).hex()
    row.sealed_key = hub.vault.seal_root_key(
        root_key, row.uuid, may_make_key=not sources.is_any_sealed(session, but=row.id)
    )
