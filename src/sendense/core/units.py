"""Sizes. Inside the product every size is an int of bytes."""

import re

from sendense.core.errors import Invalid

SECTOR = 512
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SUFFIXES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_size(size_bytes: int) -> str:
    """Return a size for people, with binary units and one decimal: `1536` → `"1.5 KiB"`."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for suffix in _SUFFIXES:
        if value < KIB or suffix == _SUFFIXES[-1]:
            return f"{value:.1f} {suffix}"
        value /= KIB
    raise AssertionError("the last suffix always returns")


def align_down(value: int, unit: int) -> int:
    """Return the largest multiple of `unit` that is not above `value`."""
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def parse_size(text: str) -> int:
    """Return the bytes that `10GiB`, `1.5 MiB`, `512KiB` or a bare number name. Raises Invalid."""
    found = re.fullmatch(r"([0-9]{1,15}(?:[.][0-9]{1,6})?) ?(B|KiB|MiB|GiB|TiB)?", text.strip())
    if found is None:
        raise Invalid(
            f"{text!r} is no size", kind="size-invalid", hint="write it as 512MiB, 10GiB or 2TiB"
        )
    return int(float(found[1]) * KIB ** _SUFFIXES.index(found[2] or "B"))
