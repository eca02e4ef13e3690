"""Reads what a qcow2 header names, before any program of QEMU may see the image.

Whoever had the image wrote its header, and QEMU opens the files that it names: `qemu-img info` once
read any file of the machine, or hung on a pipe, by way of a data file (CVE-2024-4467). Here
only the file itself is read, a few KiB of it, and nothing in it is followed.

Specification: https://www.qemu.org/docs/master/interop/qcow2.html (docs/interop/qcow2.rst),
sections "Header", "Header extensions" and "String header extensions". Where it leaves room, what
QEMU refuses (block/qcow2.c, `qcow2_do_open`) is refused too, and so is what two readers could take
for two different names.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from sendense.core import units
from sendense.core.errors import Invalid

MAGIC = b"QFI\xfb"
EXTENSIONS_MAX = 64  # the specification knows five types; each costs a read
BACKING_NAME_BYTES_MAX = 1023  # the specification's limit
DATA_NAME_BYTES_MAX = 4095  # Linux: PATH_MAX less its NUL
FORMAT_BYTES_MAX = 15  # QEMU's limit, far above the name of any format
CLUSTER_BITS = range(9, 22)  # 512 bytes by the specification to 2 MiB, QEMU's limit

_V2 = struct.Struct(">4sIQIIQI36x")  # magic, version, backing offset and length, bits, size, crypt
_V3 = struct.Struct(">Q16x4xI")  # behind it: incompatible features, header length
_EXTENSION = struct.Struct(">II")  # type, length; padded to a multiple of 8

_OLD, _NEW = 2, 3  # versions

_END = 0
_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE = 0x44415441

_HAS_DATA_FILE = 1 << 2
# Dirty, corrupt, external data file, compression type, extended L2 entries.
_FEATURES_KNOWN = 0b11111


@dataclass(frozen=True, slots=True)
class Header:
    """The names in a qcow2 header, as they stand there: neither resolved nor allowed.

    Attributes:
        backing_file: what the image is based on, or None.
        backing_format: the format of that, or None where nothing says it.
        data_file: where the guest's data lies, or None where it lies in the image.
    """

    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None


def read(file: BinaryIO, name: str) -> Header:
    """Read the header of an open image; `name` is for messages.

    Raises Invalid, kind `image-broken`, for anything that is no plain qcow2 header of version 2
    or 3, and OSError.
    """
    return _Reader(file, name).read()


class _Reader:
    """Reads one header, giving no more memory than a name may take."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def read(self) -> Header:
        magic, version, backing_at, backing_length, bits, _, crypt = _V2.unpack(
            self._take(0, _V2.size)
        )
        if magic != MAGIC:
            raise self._broken("is no qcow2 image")
        if version not in {_OLD, _NEW}:
            raise self._broken(f"is of version {version} of qcow2")
        if bits not in CLUSTER_BITS:
            raise self._broken(f"has clusters of 2^{bits} bytes")
        if crypt:
            raise self._broken("is encrypted, so its disk cannot be read")
        cluster = 1 << bits
        features, length = (0, _V2.size) if version == _OLD else self._read_features(cluster)
        end = backing_at or cluster
        if not length <= end <= cluster:
            raise self._broken(f"names its backing file at {backing_at}, outside of its header")
        extensions = self._read_extensions(length, end)
        if features & _HAS_DATA_FILE and _DATA_FILE not in extensions:
            raise self._broken("does not name its data file")
        backing = None
        if backing_at and backing_length:
            if backing_length > min(BACKING_NAME_BYTES_MAX, cluster - backing_at):
                raise self._broken(f"has a backing file's name of {backing_length} bytes")
            backing = self._take_text(backing_at, backing_length)
        return Header(backing, extensions.get(_BACKING_FORMAT), extensions.get(_DATA_FILE))

    def _read_features(self, cluster: int) -> tuple[int, int]:
        """Return the incompatible features and the header's length, as version 3 has them."""
        features, length = _V3.unpack(self._take(_V2.size, _V3.size))
        if not _V2.size + _V3.size <= length <= cluster:
            raise self._broken(f"has a header of {length} bytes")
        if features & ~_FEATURES_KNOWN:
            raise self._broken(f"needs features that are not known: {features:#x}")
        return features, length

    def _read_extensions(self, start: int, end: int) -> dict[int, str]:
        """Return the texts of those extensions that name something, by their type."""
        found: dict[int, str] = {}
        limits = {_BACKING_FORMAT: FORMAT_BYTES_MAX, _DATA_FILE: DATA_NAME_BYTES_MAX}
        for _ in range(EXTENSIONS_MAX):
            if start >= end:
                return found
            if start + _EXTENSION.size > end:
                # A reader that goes on behind the end would find other names, and QEMU refuses.
                raise self._broken("ends its header within an extension")
            kind, length = _EXTENSION.unpack(self._take(start, _EXTENSION.size))
            start += _EXTENSION.size
            if kind == _END:
                return found
            if length > end - start:
                raise self._broken(f"has an extension of {length} bytes")
            if kind in limits:
                # Of two names one reader may take the first and another the last.
                if kind in found or not 0 < length <= limits[kind]:
                    raise self._broken(f"names in an odd way what it is made of: {kind:#x}")
                found[kind] = self._take_text(start, length)
            start += units.align_up(length, 8)
        raise self._broken(f"has more than {EXTENSIONS_MAX} extensions")

    def _take_text(self, offset: int, length: int) -> str:
        try:
            text = self._take(offset, length).decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:  # where QEMU would stop reading
            raise self._broken("names a file by what is no text")
        return text

    def _take(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, offset)
        if len(data) < length:
            raise self._broken(f"ends within its header, at {offset + len(data)}")
        return data

    def _broken(self, reason: str) -> Invalid:
        return Invalid(f"image {self._name} {reason}", kind="image-broken")
