"""Ids: readable for people, random where names must tell nothing."""

import random
import re
import secrets
import unicodedata
from datetime import UTC, datetime
from typing import Protocol

SLUG_LENGTH_MAX = 40  # keeps a backup id below the 100 characters of its column
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class IdSource(Protocol):
    """Where the code gets its randomness from."""

    def token(self, length: int) -> str:
        """Return `length` random characters of a-z and 0-9."""
        ...

    def random_bytes(self, length: int) -> bytes:
        """Return `length` random bytes."""
        ...


class SystemIds:
    """The operating system's randomness."""

    def token(self, length: int) -> str:
        """Return `length` random characters of a-z and 0-9."""
        return "".join(secrets.choice(_ALPHABET) for _ in range(length))

    def random_bytes(self, length: int) -> bytes:
        """Return `length` random bytes."""
        return secrets.token_bytes(length)


class SeededIds:
    """Repeatable randomness for tests; never for anything that must be unguessable."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose

    def token(self, length: int) -> str:
        """Return the next `length` characters of the seeded sequence."""
        return "".join(self._random.choice(_ALPHABET) for _ in range(length))

    def random_bytes(self, length: int) -> bytes:
        """Return the next `length` bytes of the seeded sequence."""
        return self._random.randbytes(length)


def slug(name: str) -> str:
    """Return a name as `a-z0-9-`, at most `SLUG_LENGTH_MAX` long, `vm` where nothing is left.

    Accents are dropped, other scripts, spaces and slashes become single hyphens.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:SLUG_LENGTH_MAX].strip("-") or "vm"


def backup_id(vm_name: str, *, at: datetime, source: IdSource) -> str:
    """Return `backup-<vm slug>-<UTC time>-<4 random characters>`."""
    stamp = at.astimezone(UTC).strftime("%Y%m%dt%H%M%Sz")
    return f"backup-{slug(vm_name)}-{stamp}-{source.token(4)}"


def new_id(noun: str, source: IdSource) -> str:
    """Return `<noun>-<16 random characters>`, for things nobody needs to read aloud."""
    return f"{noun}-{source.token(16)}"
