"""The recovery key: a repository's root key as a text for paper."""

import base64

import blake3

from sendense.core.errors import Invalid
from sendense.repository.keys import ROOT_LENGTH

PREFIX = "SENDENSE-1"
CHECK_LENGTH = 3  # with 32 bytes of key, 56 characters of base32; a slip passes once in 16 million
GROUP_LENGTH = 4
_CONTEXT = "sendense repository v1 recovery key"
# Base32 has no such digits: whoever copies from paper means the letter.
_LOOK_ALIKES = str.maketrans("018", "OIB")


def to_text(root: bytes) -> str:
    """Return the recovery key: a prefix and 14 groups of 4 characters."""
    text = base64.b32encode(root + _check_of(root)).decode()
    groups = [text[at : at + GROUP_LENGTH] for at in range(0, len(text), GROUP_LENGTH)]
    return "-".join([PREFIX, *groups])


def parse(text: str) -> bytes:
    """Return the root key of a recovery key, however it is spaced and cased.

    Raises Invalid, kind `recovery-key-invalid`, where it is none or has a slip in it.
    """
    plain = "".join(text.split()).replace("-", "").upper()
    plain = plain.removeprefix(PREFIX.replace("-", ""))
    try:
        raw = base64.b32decode(plain.translate(_LOOK_ALIKES))
    except ValueError:  # binascii.Error is one, too
        raw = b""
    root = raw[:ROOT_LENGTH]
    if len(raw) != ROOT_LENGTH + CHECK_LENGTH or raw[ROOT_LENGTH:] != _check_of(root):
        raise Invalid(
            "this is no recovery key, or there is a slip in it",
            hint=f"it begins with {PREFIX} and has 14 groups of {GROUP_LENGTH} characters",
            kind="recovery-key-invalid",
        )
    return root


def _check_of(root: bytes) -> bytes:
    return blake3.blake3(root, derive_key_context=_CONTEXT).digest()[:CHECK_LENGTH]
