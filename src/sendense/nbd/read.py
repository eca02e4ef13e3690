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
        offset: where the caller's bytes begin.
        into: where the caller wants them.
        start: where `data` begins; at or before `offset`.
        data: what is received; `into` itself unless more than that had to be asked for.
        parts_left: counts down as requests are answered.
    """

    offset: int
    into: bytearray | memoryview
    start: int
    data: bytearray | memoryview
    parts_left: int

    def finish(self) -> None:
        """Put the bytes where the caller wants them."""
        if self.data is not self.into:
            begin = self.offset - self.start
            self.into[:] = self.data[begin : begin + len(self.into)]


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


def cut(
    offset: int, into: bytearray | memoryview, *, unit: int, most: int, size: int
) -> list[Part]:
    """Return the requests for a read: whole units, at most `most` bytes each, within `size`."""
    length = len(into)
    start = units.align_down(offset, unit)
    end = min(units.align_up(offset + length, unit), size)
    whole = end - start
    data = into if whole == length else bytearray(whole)
    read = Read(offset, into, start, data, -(-whole // most))
    if whole <= most:
        return [Part(read, start, whole, whole)]
    return [
        Part(read, at, min(most, end - at), min(most, end - at)) for at in range(start, end, most)
    ]
