"""Reads in flight: what was asked for, in which requests, and where each byte that comes belongs.

Nothing here talks to a server.
"""

import itertools
from dataclasses import dataclass, field

from sendense.core import units
from sendense.core.errors import SendenseError


@dataclass(slots=True)
class Read:
    """What a caller asked for, rounded out to the server's blocks.

    Attributes:
        offset: where the caller's `length` bytes begin.
        start: where `data` begins; at or before `offset`.
        parts_left: counts down as requests are answered.
    """

    offset: int
    length: int
    start: int
    data: bytearray
    parts_left: int

    def take(self) -> bytearray:
        """Return the caller's bytes."""
        if len(self.data) == self.length:
            return self.data
        begin = self.offset - self.start
        return self.data[begin : begin + self.length]


@dataclass(slots=True)
class Part:
    """One request for a part of a read, and what has come of it.

    Attributes:
        bytes_left: counts down as bytes come in.
        placed: (start, end) of what came in, within the part.
        chunks: how many messages that took.
    """

    read: Read
    offset: int
    length: int
    bytes_left: int
    placed: list[tuple[int, int]] = field(default_factory=list)
    chunks: int = 0
    failure: SendenseError | None = None

    def place(self, offset: int, size: int) -> memoryview | None:
        """Count bytes that come in, and return where they belong; None for what was not asked."""
        start = offset - self.offset
        if start < 0 or not 0 < size <= self.bytes_left or start + size > self.length:
            return None
        self.bytes_left -= size
        self.placed.append((start, start + size))
        begin = offset - self.read.start
        return memoryview(self.read.data)[begin : begin + size]

    def has_doubles(self) -> bool:
        """Whether bytes came twice, so that others are missing; asked when none are left."""
        self.placed.sort()
        return any(end != start for (_, end), (start, _) in itertools.pairwise(self.placed))


def cut(offset: int, length: int, *, unit: int, most: int, size: int) -> list[Part]:
    """Return the requests for a read: whole units, at most `most` bytes each, within `size`."""
    start = units.align_down(offset, unit)
    end = min(units.align_up(offset + length, unit), size)
    whole = end - start
    read = Read(offset, length, start, bytearray(whole), -(-whole // most))
    if whole <= most:
        return [Part(read, start, whole, whole)]
    return [
        Part(read, at, min(most, end - at), min(most, end - at)) for at in range(start, end, most)
    ]
