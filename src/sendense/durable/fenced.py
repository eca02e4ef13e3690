"""The catalog as a worker may write it: only while nobody has taken its jobs over.

A lease is checked before a write begins, but a process may freeze right behind the check. So the
worker's row is looked for inside each transaction: a sweep removes it in a transaction of the same
lock, and whoever comes after that finds it gone. What such a worker wrote last was therefore
written while it still owned its jobs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from sendense.db.catalog import Catalog
from sendense.durable.lease import Lease


class FencedCatalog(Catalog):
    """A worker's catalog; shares the connections of the one that it is made of."""

    def __init__(self, catalog: Catalog, lease: Lease) -> None:  # it opens nothing of its own
        self.url = catalog.url
        self.engine = catalog.engine
        self._catalog = catalog
        self._lease = lease

    @contextmanager
    def read(self) -> Iterator[Session]:
        """As Catalog.read."""
        with self._catalog.read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """As Catalog.write; ends this process where it was declared dead."""
        self._lease.check()
        with self._catalog.write() as session:
            self._lease.confirm(session)
            yield session

    def close(self) -> None:
        """Close all connections, also those of the catalog that this one is made of."""
        self._catalog.close()
