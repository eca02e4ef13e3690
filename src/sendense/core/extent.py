"""Extents: runs of bytes of a disk, and the algebra on streams of them.

Every function takes and gives extents in ascending order of `start` without overlap, lazily: a
disk of many TiB may have millions of extents, and no function here holds more than one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sendense.core import units


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes of a disk.

    Attributes:
        start: offset of the first byte.
        length: number of bytes, at least 1.
        zero: the source promises that all of it reads as zeros, so nobody needs to read it.
    """

    start: int
    length: int
    zero: bool = False

    def __post_init__(self) -> None:
        assert self.start >= 0, f"extent starts at {self.start}"
        assert self.length > 0, f"extent at {self.start} is {self.length} bytes long"

    @property
    def end(self) -> int:
        """Offset of the first byte behind the extent."""
        return self.start + self.length


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours that touch and agree on `zero`; the input may touch but not overlap."""
    current: Extent | None = None
    for extent in extents:
        if current is None:
            current = extent
            continue
        assert extent.start >= current.end, f"{extent} overlaps or precedes {current}"
        if extent.start == current.end and extent.zero == current.zero:
            current = Extent(current.start, current.length + extent.length, current.zero)
        else:
            yield current
            current = extent
    if current is not None:
        yield current


def clip(extents: Iterable[Extent], *, size: int) -> Iterator[Extent]:
    """Cut off what lies at or beyond `size`.

    QEMU pads the last cluster of a bitmap, so changed extents can end behind the disk.
    """
    for extent in extents:
        if extent.start >= size:
            return
        yield Extent(extent.start, min(extent.end, size) - extent.start, extent.zero)


def round_out(extents: Iterable[Extent], *, unit: int, size: int) -> Iterator[Extent]:
    """Round each extent out to multiples of `unit`, clipped to `size`, and join the result.

    The flag `zero` is dropped: a unit that is partly zero has to be read.
    """
    current: tuple[int, int] | None = None
    for extent in clip(extents, size=size):
        start = units.align_down(extent.start, unit)
        end = min(units.align_up(extent.end, unit), size)
        if current is None:
            current = (start, end)
        elif start <= current[1]:
            current = (current[0], max(current[1], end))
        else:
            yield Extent(current[0], current[1] - current[0])
            current = (start, end)
    if current is not None:
        yield Extent(current[0], current[1] - current[0])


def mark_zeros(changed: Iterable[Extent], allocated: Iterable[Extent]) -> Iterator[Extent]:
    """Split changed extents where the disk begins or ceases to read as zeros.

    `allocated` covers the whole disk.
    """
    blocks = iter(allocated)
    block = next(blocks, None)
    for run in changed:
        start = run.start
        while start < run.end:
            while block is not None and block.end <= start:
                block = next(blocks, None)
            end = run.end if block is None else min(run.end, block.end)
            yield Extent(start, end - start, zero=block is not None and block.zero)
            start = end


def split(extent: Extent, *, unit: int) -> Iterator[Extent]:
    """Cut an extent at the multiples of `unit`."""
    start = extent.start
    while start < extent.end:
        end = min(units.align_down(start, unit) + unit, extent.end)
        yield Extent(start, end - start, extent.zero)
        start = end


def gaps(extents: Iterable[Extent], *, size: int) -> Iterator[Extent]:
    """Return what of a disk of `size` bytes the extents leave out."""
    position = 0
    for extent in clip(extents, size=size):
        if extent.start > position:
            yield Extent(position, extent.start - position)
        position = extent.end
    if position < size:
        yield Extent(position, size - position)


def total(extents: Iterable[Extent]) -> int:
    """Return the number of bytes in all extents together."""
    return sum(extent.length for extent in extents)
