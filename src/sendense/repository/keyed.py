"""A storage together with the keys of what lies in it: what an open repository works on."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from sendense.repository.keys import Keys
from sendense.repository.storage.base import Buffer, Capacity, Storage, StoredObject
from sendense.repository.storage.locks import Locks


class KeyedStorage(Storage, Protocol):
    """A storage with keys."""

    @property
    def keys(self) -> Keys:
        """The keys."""
        ...


class Keyed:
    """Adds keys to a storage; everything else is that storage's own."""

    def __init__(self, storage: Storage, keys: Keys) -> None:
        self._storage = storage
        self.keys = keys

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """As Storage.put_if_absent."""
        self._storage.put_if_absent(name, data)

    def get(self, name: str) -> bytes:
        """As Storage.get."""
        return self._storage.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """As Storage.get_range."""
        return self._storage.get_range(name, offset, length)

    def map(self, name: str) -> memoryview:
        """As Storage.map."""
        return self._storage.map(name)

    def size(self, name: str) -> int:
        """As Storage.size."""
        return self._storage.size(name)

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """As Storage.list_objects."""
        return self._storage.list_objects(prefix)

    def list_top(self) -> list[str]:
        """As Storage.list_top."""
        return self._storage.list_top()

    def delete(self, name: str) -> None:
        """As Storage.delete."""
        self._storage.delete(name)

    def tidy(self) -> int:
        """As Storage.tidy."""
        return self._storage.tidy()

    def capacity(self) -> Capacity | None:
        """As Storage.capacity."""
        return self._storage.capacity()

    def listing_seconds(self) -> float:
        """As Storage.listing_seconds."""
        return self._storage.listing_seconds()

    def locks(self) -> Locks | None:
        """As Storage.locks."""
        return self._storage.locks()

    def close(self) -> None:
        """As Storage.close."""
        self._storage.close()
