"""Seals what sources are logged in with, and keys of repositories, by a key outside the database.

AES-256-GCM with a random nonce for each secret. What a secret belongs to (the source, the field,
the host it is sent to and the user's name) is authenticated with it: whoever can write to the
catalog cannot have it sent elsewhere. See docs/decisions/0310-credentials-are-sealed.md.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.core.errors import Conflict, Corrupt
from sendense.core.ids import IdSource

VERSION = 1
KEY_BYTES = 32
NONCE_BYTES = 12  # GCM's own; random ones repeat after 2^32 secrets at the earliest
TAG_BYTES = 16
USERNAME, PASSWORD = "username", "password"
KEY_ID_LENGTH = 16
_PURPOSE = "sendense credentials"
_REPOSITORY_PURPOSE = "sendense repository key"


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """A key; its id names it and tells nothing about it.

    Attributes:
        place: where it was found, for people.
    """

    secret: "Secret"
    place: str

    @property
    def id(self) -> str:
        """Return what is kept beside each secret to notice another key."""
        digest = hashlib.sha256(f"{_PURPOSE} key id".encode() + self.secret.value)
        return digest.hexdigest()[:KEY_ID_LENGTH]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Secret:
    """Bytes that no log or message shows."""

    value: bytes

    def __repr__(self) -> str:
        return "Secret(***)"


class KeyPlace(Protocol):
    """Where the key is; asked each time, so that a key that was put back works at once."""

    def read(self) -> Key:
        """Return the key.

        Raises Conflict, kind `credentials-key-missing`; Denied, kind `credentials-key-exposed`;
        Invalid, kind `credentials-key-invalid`; Unavailable, kind `credentials-key-unreadable`.
        """
        ...

    def read_or_make(self) -> Key:
        """Return the key, making one where there is none and where that is our own place."""
        ...


@dataclass(frozen=True, slots=True)
class Belonging:
    """What a secret belongs to; with anything else it cannot be opened."""

    source_id: str
    host: str


class Vault:
    """Seals and opens credentials of sources and keys of repositories; from any thread."""

    def __init__(self, place: KeyPlace, ids: IdSource) -> None:
        self._place = place
        self._ids = ids

    def seal(
        self, credentials: Mapping[str, str], belonging: Belonging, *, may_make_key: bool
    ) -> dict[str, Any]:
        """Return credentials as the catalog keeps them.

        Args:
            credentials: `username` and `password`, each a text.
            belonging: what they belong to.
            may_make_key: false where secrets exist already: a new key would not open those, so
                that its making would only hide that the old one is missing.
        """
        key = self._place.read_or_make() if may_make_key else self._place.read()
        username = credentials[USERNAME]
        nonce = self._ids.random_bytes(NONCE_BYTES)
        sealed = AESGCM(key.secret.value).encrypt(
            nonce,
            credentials[PASSWORD].encode(),
            _bind(belonging, PASSWORD, username),
        )
        return {
            "version": VERSION,
            "key_id": key.id,
            USERNAME: username,
            PASSWORD: base64.b64encode(nonce + sealed).decode(),
        }

    def seal_root_key(self, root: bytes, uuid: str, *, may_make_key: bool) -> dict[str, Any]:
        """Return a repository's root key as the catalog keeps it.

        Args:
            root: the key.
            uuid: the id that the repository itself carries; with another it cannot be opened.
            may_make_key: as for `seal`.
        """
        key = self._place.read_or_make() if may_make_key else self._place.read()
        nonce = self._ids.random_bytes(NONCE_BYTES)
        sealed = AESGCM(key.secret.value).encrypt(nonce, root, _bind_repository(uuid))
        return {
            "version": VERSION,
            "key_id": key.id,
            "root_key": base64.b64encode(nonce + sealed).decode(),
        }

    def read_key(self) -> bytes:
        """Return the key itself, for an export that is sealed. Raises as `KeyPlace.read` does."""
        return self._place.read().secret.value

    def open_root_key(self, kept: Mapping[str, Any], uuid: str) -> bytes:
        """Return a repository's root key. Raises as `open` does."""
        key = self._place.read()
        hint = "give the repository's key again by `sendense repository unlock`"
        if kept.get("key_id") != key.id:
            raise Conflict(
                f"the key of repository {uuid} was sealed with another key than the one at"
                f" {key.place}",
                kind="credentials-key-wrong",
                hint=f"put the key back that it was sealed with; where that is lost, {hint}",
                key_id=key.id,
                key_id_wanted=str(kept.get("key_id")),
            )
        try:
            content = base64.b64decode(kept["root_key"], validate=True)
            return AESGCM(key.secret.value).decrypt(
                content[:NONCE_BYTES], content[NONCE_BYTES:], _bind_repository(uuid)
            )
        except (InvalidTag, KeyError, TypeError, ValueError) as error:
            raise Corrupt(
                f"the sealed key of repository {uuid} is not what was sealed",
                kind="credentials-damaged",
                hint=f"somebody changed the catalog by hand, or it is damaged; {hint}",
            ) from error

    def open(self, kept: Mapping[str, Any], belonging: Belonging) -> dict[str, str]:
        """Return `username` and `password`.

        Raises what `KeyPlace.read` does; Conflict, kind `credentials-key-wrong`, for another key
        than theirs; Corrupt, kind `credentials-damaged`, where they were changed or belong to
        something else.
        """
        key = self._place.read()
        if kept.get("key_id") != key.id:
            raise Conflict(
                f"the credentials of source {belonging.source_id} were sealed with another key than"
                f" the one at {key.place}",
                kind="credentials-key-wrong",
                hint="put the key back that they were sealed with (on each machine that runs a"
                " worker); where it is lost, give the credentials again by"
                " `sendense source set-credentials`",
                source_id=belonging.source_id,
                key_id=key.id,
                key_id_wanted=str(kept.get("key_id")),
            )
        try:
            username, content = kept[USERNAME], base64.b64decode(kept[PASSWORD], validate=True)
            password = AESGCM(key.secret.value).decrypt(
                content[:NONCE_BYTES],
                content[NONCE_BYTES:],
                _bind(belonging, PASSWORD, username),
            )
            return {USERNAME: username, PASSWORD: password.decode()}
        except (InvalidTag, KeyError, TypeError, ValueError, binascii.Error) as error:
            raise Corrupt(
                f"the credentials of source {belonging.source_id} are not what was sealed, or were"
                " sealed for another host",
                kind="credentials-damaged",
                hint="somebody changed the catalog by hand, or it is damaged; give the credentials"
                " again by `sendense source set-credentials`",
                source_id=belonging.source_id,
            ) from error


def find_username(kept: Mapping[str, Any] | None) -> str | None:
    """Return the name that credentials log in with, which is no secret, or None."""
    return None if kept is None else str(kept.get(USERNAME, ""))


def _bind_repository(uuid: str) -> bytes:
    return json.dumps([_REPOSITORY_PURPOSE, VERSION, uuid], separators=(",", ":")).encode()


def _bind(belonging: Belonging, field: str, username: str) -> bytes:
    """Return what is authenticated; a list in JSON, so that no two differ by where they are cut."""
    parts = [_PURPOSE, VERSION, belonging.source_id, field, belonging.host, username]
    return json.dumps(parts, ensure_ascii=True, separators=(",", ":")).encode()
