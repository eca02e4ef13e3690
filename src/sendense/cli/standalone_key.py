"""Making a repository, and who can open it, with no server: only the repository itself."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from sendense.cli import repository_key, standalone, unlocking
from sendense.cli.command import Session
from sendense.cli.unlocking import Given
from sendense.core import clock
from sendense.core.clock import SystemClock
from sendense.core.errors import Invalid, SendenseError
from sendense.core.ids import SystemIds
from sendense.repository import descriptor, recipients, recovery
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.keys import ROOT_LENGTH
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.storage import locations, probe
from sendense.repository.storage.base import Storage
from sendense.repository.storage.locks import LockMode

PROBE_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Wanted:
    """What a new repository shall be."""

    encryption: bool
    accept_unfit: bool
    immutable_days: int = 0
    lock_mode: str | None = None


def create(session: Session, place: str, given: Given, wanted: Wanted) -> None:
    """Make a repository in an empty place, and tell its recovery key.

    An object store is tried out first. Raises Conflict, kind `storage-unfit`, where it fails.
    """
    if given.passphrase is not None:
        recipients.check_passphrase(given.passphrase)
    ids = SystemIds()
    root_key = ids.random_bytes(ROOT_LENGTH) if wanted.encryption else None
    settings = RepositorySettings(
        root_key=root_key,
        immutable_days=wanted.immutable_days,
        lock_mode=LockMode(wanted.lock_mode) if wanted.lock_mode else None,
    )
    with _make(session, place, settings, accept_unfit=wanted.accept_unfit) as made:
        if given.passphrase is not None and root_key is not None:
            recipients.add_passphrase(
                made.storage, root_key, given.passphrase, label="", clock=SystemClock(), ids=ids
            )
        uuid = made.id
    told = recovery.to_text(root_key) if root_key is not None else None
    if session.output.as_json:
        session.output.json(json.dumps({"path": place, "uuid": uuid, "recovery_key": told}))
        return
    session.output.line(f"repository made: {place}")
    if told is None:
        session.output.warn("it is not encrypted: whoever can read its files can read all backups")
    else:
        unlocking.show_recovery_key(session, told)


def _make(
    session: Session, place: str, settings: RepositorySettings, *, accept_unfit: bool
) -> Repository:
    """Make a repository; where that is refused, a folder that was made for it goes again."""
    was_there = locations.is_url(place) or Path(place).exists()
    storage = _make_place(session, place, accept_unfit=accept_unfit)
    try:
        return Repository.create(
            storage, settings, clock=SystemClock(), ids=SystemIds(), reserve=NO_RESERVE
        )
    except SendenseError:
        storage.close()
        if not was_there:
            with contextlib.suppress(OSError):  # whatever lies in it is not ours to remove
                Path(place).rmdir()
        raise


def _make_place(session: Session, place: str, *, accept_unfit: bool) -> Storage:
    """Make the folder, or find out whether the object store is fit."""
    if not locations.is_url(place):
        Path(place).mkdir(mode=0o700, parents=True, exist_ok=True)
        return locations.open_storage(place)
    storage = locations.open_storage(place)
    if storage.list_top():
        return storage  # which is refused, and nothing is put into what is somebody's
    session.output.note("trying out whether the store can hold a repository")
    found = probe.probe(storage, SystemIds().token(PROBE_TOKEN_LENGTH))
    if not accept_unfit:
        probe.require_fit(found)
    for failure in found.failures:
        session.output.warn(failure)
    session.output.note(
        f"{found.rounds} times {found.writers} writers at once, {len(found.failures)} failures,"
        f" {found.seconds:.1f} s"
    )
    return storage


def list_recipients(session: Session, place: str) -> None:
    """List who can open a repository; needs no key."""
    with standalone.open_storage(place) as (storage, _):
        found, damaged = recipients.list_recipients(storage)
    entries = [
        {
            "recipient_id": one.recipient_id,
            "kind": str(one.kind),
            "label": one.label,
            "created_at": clock.format_utc(one.created_at),
        }
        for one in found
    ]
    if session.output.as_json:
        document = {
            "recipients": entries,
            "total": len(entries),
            "damaged": [str(one.fields["name"]) for one in damaged],
        }
        session.output.json(json.dumps(document, ensure_ascii=False))
        return
    for error in damaged:
        session.output.warn(error.message)
    repository_key.print_recipients(session, entries)


def add_passphrase(
    session: Session, place: str, passphrase: str, *, label: str, given: Given
) -> None:
    """Let a passphrase open a repository, by a key that opens it already."""
    with standalone.open_storage(place) as (storage, found):
        root_key = standalone.find_root_key(storage, found, given)
        descriptor.unlock(found, root_key)
        if root_key is None:
            raise Invalid(
                f"the repository at {place} is not encrypted, so there is no key to protect",
                kind="repository-not-encrypted",
            )
        made = recipients.add_passphrase(
            storage, root_key, passphrase, label=label, clock=SystemClock(), ids=SystemIds()
        )
    if session.output.as_json:
        session.output.json(json.dumps({"recipient_id": made.recipient_id}))
        return
    session.output.line(f"passphrase added: {made.recipient_id}")


def remove(session: Session, place: str, recipient_id: str) -> None:
    """Let a recipient open a repository no more."""
    with standalone.open_storage(place) as (storage, _):
        recipients.remove(storage, recipient_id)
    if session.output.as_json:
        session.output.json(json.dumps({"removed": recipient_id}))
        return
    session.output.line(f"recipient {recipient_id} removed")
