"""What a writer needs of the repository it writes to."""

from collections.abc import Sequence
from typing import Protocol

from sendense.core.clock import Clock
from sendense.core.ids import IdSource
from sendense.repository.keyed import KeyedStorage
from sendense.repository.segments import Segments


class Place(Protocol):
    """What a writer needs of its repository."""

    @property
    def storage(self) -> KeyedStorage:
        """Where objects go."""
        ...

    @property
    def segments(self) -> Segments:
        """The index of all that is committed."""
        ...

    @property
    def clock(self) -> Clock:
        """Time."""
        ...

    @property
    def ids(self) -> IdSource:
        """Randomness."""
        ...

    def get_node(self, node_id: bytes) -> bytes:
        """Return the bytes of a disk map's node."""
        ...

    def get_nodes(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the bytes of those of many nodes that can be read at once."""
        ...

    def require_room(self, size: int) -> None:
        """Raise NoSpace where storing so many bytes would touch the reserve."""
        ...
