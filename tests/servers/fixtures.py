"""Fixtures of the database servers: started when the first test asks, once for a run."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.servers import mariadb as mariadb_server
from tests.servers import postgresql as postgresql_server
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.process import Server

KINDS = ("sqlite", "postgresql", "mariadb")


def _require(found: object, name: str) -> None:
    """Skip where a server is not installed, but never where a whole run is the point."""
    if found is not None:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, and CI tests every database")
    pytest.skip(f"{name} is not installed: any recipe of ./dev installs it")


def _open(kind: str) -> Server:
    if kind == "postgresql":
        _require(postgresql_server.find_programs(), "PostgreSQL")
        return PostgresqlServer()
    _require(mariadb_server.find_program(), "MariaDB")
    return MariadbServer()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL that all tests share: for databases, not for faults."""
    with closing(_open("postgresql")) as server:
        assert isinstance(server, PostgresqlServer)
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """A MariaDB that all tests share: for databases, not for faults."""
    with closing(_open("mariadb")) as server:
        assert isinstance(server, MariadbServer)
        yield server


@pytest.fixture
def postgresql_url(postgresql: PostgresqlServer) -> Callable[[], str]:
    """Give the URL of a new empty database with each call."""
    return postgresql.create_database


@pytest.fixture
def mariadb_url(mariadb: MariadbServer) -> Callable[[], str]:
    """Give the URL of a new empty database with each call."""
    return mariadb.create_database


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Give the URL of a new empty database of a kind of KINDS with each call."""
    made = 0

    def create(kind: str) -> str:
        nonlocal made
        made += 1
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/database-{made}.sqlite"
        server: Server = request.getfixturevalue(kind)
        return server.create_database()

    return create


@pytest.fixture
def private_server() -> Iterator[Callable[[str], Server]]:
    """Start a server for one test alone with each call, to be stopped, killed and frozen."""
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(closing(_open(kind)))
