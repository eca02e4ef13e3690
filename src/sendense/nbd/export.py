"""What a server serves: whoever has bytes to offer over NBD implements one of these."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Export(Protocol):
    """What is served. Called from several threads at once."""

    @property
    def size_bytes(self) -> int:
        """Size; constant while it is served."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes. A SendenseError or OSError becomes the client's error."""
        ...


@runtime_checkable
class DescribedExport(Export, Protocol):
    """An export that tells about its extents."""

    @property
    def contexts(self) -> Sequence[str]:
        """Names of metadata contexts, e.g. `base:allocation`."""
        ...

    def list_extents(self, context: str, offset: int, length: int) -> Iterable[tuple[int, int]]:
        """Yield (length, flags) from `offset` on, without gaps; at least one, at most `length`."""
        ...


@runtime_checkable
class WritableExport(Export, Protocol):
    """An export that clients may write."""

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes; a NoSpace becomes the client's error for a full disk."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        ...

    def flush(self) -> None:
        """Make durable what was written."""
        ...
