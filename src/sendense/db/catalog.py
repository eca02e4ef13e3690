"""Opening the catalog, and the two kinds of transaction on it."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session, sessionmaker

from sendense.db import engines, failure
from sendense.db import url as urls


class Catalog:
    """A database that holds the catalog. Thread-safe; close it when done.

    `read()` and `write()` give a session that is one transaction. What `write()` did is committed
    when its block ends and rolled back when the block raises. Where the database itself is the
    matter, both raise what `failure.translated` promises.
    """

    def __init__(self, url: str) -> None:
        """Open nothing yet. Raises Invalid for a URL that cannot be a catalog's."""
        self.url = urls.parse(url)
        self.engine = engines.create(self.url)
        self._readers = sessionmaker(
            self.engine.execution_options(**{engines.READS: True}), expire_on_commit=False
        )
        self._writers = sessionmaker(
            self.engine.execution_options(**{engines.WRITES: True}), expire_on_commit=False
        )
        self._signs = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view; never waits for a writer. Nothing written in it is kept."""
        with failure.translated(), self._readers() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, the only one that writes while it lasts; it waits for the others.

        It is to be short: a server ends one in which nothing happens for seconds, and whoever
        waits for longer than half a minute gives up with `catalog-busy`.
        """
        with failure.translated(), self._writers.begin() as session:
            yield session

    @contextmanager
    def write_beside(self) -> Iterator[Session]:
        """One transaction that changes a row which no other transaction reads in order to write.

        On a server it waits for no `write()`, not even for one whose process is frozen; on SQLite
        it is the same as that. Commits and raises as `write()` does.
        """
        with failure.translated(), self._signs.begin() as session:
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
