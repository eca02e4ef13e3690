"""Chunks: identify, compress and decompress one aligned piece of a disk.

Every function here leaves the interpreter free for other threads while it works on the bytes.
"""

import threading
from enum import IntEnum

import numpy as np
import zstandard

from sendense.core import units
from sendense.core.errors import Corrupt, Invalid
from sendense.repository.storage.base import Buffer

ID_LENGTH = 32
ZERO_ID = bytes(ID_LENGTH)  # stands for a chunk of zeros, or a subtree of them; never stored
SIZE_MIN = 128 * units.KIB
SIZE_MAX = 4 * units.MIB
SIZE_DEFAULT = 256 * units.KIB  # measured: decision 161

LEVEL_OFF = 0
LEVEL_DEFAULT = 1
LEVEL_MAX = 19
# Below it zstd itself passes incompressible data fast (measured: level 1 at 6.2 GB/s, level 9 at
# 2.5), and a probe costs real data 3 %.
PROBED_LEVEL_MIN = 10
SAMPLE_LENGTH = 4 * units.KIB  # a probe's sample: one page, enough for zstd to find repetition
SAMPLE_COUNT = 4
SAMPLED_LENGTH_MIN = 16 * SAMPLE_LENGTH  # below that a probe costs as much as compressing
INCOMPRESSIBLE_SHARE = (
    0.98  # a sample that keeps more than this share of its size is a hopeless one
)


class Codec(IntEnum):
    """How a blob's bytes are stored."""

    RAW = 0
    ZSTD = 1


class _Contexts(threading.local):
    """One set of zstd contexts for each thread: they are costly to make and not thread-safe."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self.compressors:
            self.compressors[level] = zstandard.ZstdCompressor(level=level)
        return self.compressors[level]


_contexts = _Contexts()


def check_size(size: int) -> int:
    """Return a chunk size, or raise Invalid where it is no power of two within the limits."""
    if not SIZE_MIN <= size <= SIZE_MAX or size & (size - 1):
        raise Invalid(
            f"chunk size {size} is not a power of two from {SIZE_MIN} to {SIZE_MAX}",
            kind="chunk-size-invalid",
            chunk_size=size,
        )
    return size


def check_level(level: int) -> int:
    """Return a compression level, or raise Invalid: 0 is off, 1 to 19 are zstd's."""
    if not LEVEL_OFF <= level <= LEVEL_MAX:
        raise Invalid(
            f"compression level {level} is not within {LEVEL_OFF} and {LEVEL_MAX}",
            kind="compression-level-invalid",
            level=level,
        )
    return level


def is_zero(data: Buffer) -> bool:
    """Return whether all bytes are zero. Finds a first byte that is not at once."""
    if len(data) == 0 or data[0]:
        return len(data) == 0
    words = np.frombuffer(data, dtype=np.uint64, count=len(data) // 8)
    return not words.any() and not any(memoryview(data)[len(words) * 8 :])


def encode(data: Buffer, level: int) -> tuple[Codec, bytes]:
    """Return how to store a chunk: compressed, or as it is where that is not smaller."""
    if level == LEVEL_OFF:
        return Codec.RAW, bytes(data)
    compressor = _contexts.compressor(level)
    if level >= PROBED_LEVEL_MIN and _is_hopeless(data, compressor):
        return Codec.RAW, bytes(data)
    stored = compressor.compress(data)
    if len(stored) >= len(data):
        return Codec.RAW, bytes(data)
    return Codec.ZSTD, stored


def _is_hopeless(data: Buffer, compressor: zstandard.ZstdCompressor) -> bool:
    """Return whether samples say that compressing would be in vain."""
    if len(data) < SAMPLED_LENGTH_MIN:
        return False
    view = memoryview(data)
    step = len(data) // SAMPLE_COUNT
    samples = b"".join(
        view[start : start + SAMPLE_LENGTH] for start in range(0, step * SAMPLE_COUNT, step)
    )
    return len(compressor.compress(samples)) > len(samples) * INCOMPRESSIBLE_SHARE


def decompress(codec: int, stored: Buffer, *, plain_length: int) -> bytes:
    """Return the plain bytes of a blob, exactly `plain_length`, or raise Corrupt."""
    if codec == Codec.RAW:
        if len(stored) != plain_length:
            raise _undecodable(f"{len(stored)} raw bytes where {plain_length} should be")
        return bytes(stored)
    if codec != Codec.ZSTD:
        raise _undecodable(f"unknown codec {codec}")
    try:
        # The size that the frame claims is compared before anything of that size is allocated.
        if zstandard.frame_content_size(stored) != plain_length:
            raise _undecodable(f"a zstd frame that is not of {plain_length} bytes")
        # A frame that holds more or less than it claims is an error of zstandard's.
        return _contexts.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _undecodable(str(error)) from error


def _undecodable(found: str) -> Corrupt:
    return Corrupt(f"a blob does not decode: {found}", kind="blob-corrupt")
