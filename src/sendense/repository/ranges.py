"""Blobs that lie near each other in a pack are read together: what costs is the request."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from sendense.core import units
from sendense.repository import pack
from sendense.repository.index import Place
from sendense.repository.keyed import KeyedStorage

READ_BYTES_MAX = 4 * units.MIB  # of one ranged read, stored and plain
GAP_BYTES_MAX = 128 * units.KIB  # reading over a gap this small is cheaper than a second request


class Placed(Protocol):
    """Something that lies somewhere."""

    @property
    def place(self) -> Place:
        """Where."""
        ...


P = TypeVar("P", bound=Placed)


def group(placed: Iterable[P]) -> Iterator[list[P]]:
    """Yield what one ranged read brings together; pack by pack, each in order of its offsets.

    The packs come in the order in which they are first met.
    """
    by_pack: dict[bytes, list[P]] = {}
    for one in placed:
        by_pack.setdefault(one.place.pack.id, []).append(one)
    for neighbours in by_pack.values():
        neighbours.sort(key=lambda one: one.place.offset)
        yield from _group_sorted(neighbours)


def read(storage: KeyedStorage, together: list[P]) -> Iterator[tuple[P, memoryview]]:
    """Read what `group` yielded, and yield each with its header and stored bytes.

    Raises as `Storage.get_range`.
    """
    start = together[0].place.offset
    length = _end_of(together[-1].place) - start
    data = memoryview(storage.get_range(together[0].place.pack.name, start, length))
    for one in together:
        yield one, data[one.place.offset - start : _end_of(one.place) - start]


def _end_of(place: Place) -> int:
    """Return the offset behind a blob."""
    return place.offset + pack.BLOB.size + place.stored_length


def _group_sorted(placed: list[P]) -> Iterator[list[P]]:
    """Yield the groups of one pack's, at least one, in order of their offsets."""
    together = placed[:1]
    plain = together[0].place.plain_length
    for one in placed[1:]:
        place = one.place
        gap = place.offset - _end_of(together[-1].place)
        size = _end_of(place) - together[0].place.offset
        if gap > GAP_BYTES_MAX or max(size, plain + place.plain_length) > READ_BYTES_MAX:
            yield together
            together, plain = [], 0
        together.append(one)
        plain += place.plain_length
    yield together
