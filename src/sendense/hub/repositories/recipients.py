"""Who can open a repository: unlocking it for the hub, and passphrases for people."""

from sqlalchemy.orm import Session

from sendense.core.errors import Invalid
from sendense.db.tables import RepositoryRow
from sendense.hub.context import Hub
from sendense.hub.repositories import queries, root_keys, service
from sendense.hub.repositories.schemas import (
    AddPassphrase,
    Recipient,
    RecipientList,
    UnlockRepository,
)
from sendense.repository import descriptor, recipients


def unlock(hub: Hub, row: RepositoryRow, given: UnlockRepository) -> bytes:
    """Return the root key that was given, after making sure that it opens the repository.

    Raises Denied (`passphrase-wrong`, `repository-key-wrong`), Invalid (`recovery-key-invalid`,
    `repository-not-encrypted`).
    """
    with service.open_checked(hub, row) as storage:
        found = descriptor.get(storage)
        root_key = root_keys.open_given(storage, given)
        assert root_key is not None, "one of the two was given"
        descriptor.unlock(found, root_key)
        return root_key


def keep_key(session: Session, hub: Hub, repository_id: str, root_key: bytes) -> None:
    """Seal a root key anew and keep it."""
    row = queries.get_repository(session, repository_id)
    root_keys.keep(session, hub, row, root_key)
    row.updated_at = hub.clock.now()


def list_recipients(hub: Hub, row: RepositoryRow) -> RecipientList:
    """Return who can open a repository."""
    with service.open_checked(hub, row) as storage:
        found, damaged = recipients.list_recipients(storage)
    return RecipientList(
        recipients=[_show_recipient(one) for one in found],
        total=len(found),
        damaged=[str(one.fields["name"]) for one in damaged],
    )


def add_passphrase(hub: Hub, row: RepositoryRow, wanted: AddPassphrase) -> Recipient:
    """Let a passphrase open a repository.

    Raises Invalid, kind `passphrase-invalid`, and kind `repository-not-encrypted`.
    """
    with service.open_repository(hub, row) as opened:
        root_key = root_keys.find(hub, row)
        if root_key is None:
            raise Invalid(
                f"repository {row.name} is not encrypted, so there is no key to protect",
                kind="repository-not-encrypted",
                hint="make an encrypted one, and back up there",
            )
        made = recipients.add_passphrase(
            opened.storage,
            root_key,
            wanted.passphrase.get_secret_value(),
            label=wanted.label,
            clock=hub.clock,
            ids=hub.ids,
        )
    return _show_recipient(made)


def remove_recipient(hub: Hub, row: RepositoryRow, recipient_id: str) -> None:
    """Let a recipient open a repository no more. Raises NotFound, kind `recipient-unknown`."""
    with service.open_checked(hub, row) as storage:
        recipients.remove(storage, recipient_id)


def _show_recipient(one: recipients.Recipient) -> Recipient:
    return Recipient(
        recipient_id=one.recipient_id, kind=one.kind, label=one.label, created_at=one.created_at
    )
