"""Waiting, standing still and losing the server, on each database."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from sendense.db import engines, schema
from sendense.db.catalog import Catalog
from sendense.db.failure import CatalogUnavailable
from sendense.db.tables import SourceRow
from tests.servers.fixtures import KINDS
from tests.servers.process import Server
from tests.unit.db.rows import source

SERVERS = KINDS[1:]
# Instead of half a minute; the servers know whole seconds.
BRIEF_SECONDS = 1
ATTEMPTS_MAX = 20


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waiting for the lock, and standing still, end soon."""
    monkeypatch.setattr(engines, "BUSY_SECONDS_MAX", float(BRIEF_SECONDS))
    monkeypatch.setattr(engines, "IDLE_SECONDS_MAX", BRIEF_SECONDS)


@contextmanager
def second(catalog: Catalog) -> Iterator[Catalog]:
    """Open the same database as another process would."""
    other = Catalog(catalog.url.render_as_string(hide_password=False))
    yield other
    other.close()


def add(catalog: Catalog, name: str) -> None:
    with catalog.write() as session:
        session.add(source(name))


def names(catalog: Catalog) -> list[str]:
    with catalog.read() as session:
        return list(session.scalars(select(SourceRow.name).order_by(SourceRow.name)))


@pytest.mark.usefixtures("brief")
def test_a_writer_gives_up_waiting_with_a_word_on_it(catalog: Catalog) -> None:
    with second(catalog) as other, other.write() as session:
        session.add(source("first"))
        session.flush()
        refused: list[CatalogUnavailable] = []

        def wait() -> None:
            with pytest.raises(CatalogUnavailable) as caught:
                add(catalog, "second")
            refused.append(caught.value)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while waiting.is_alive():  # the holder is slow, but it is alive and does something
            session.execute(text("SELECT 1"))
            waiting.join(BRIEF_SECONDS / 10)
    assert [one.kind for one in refused] == ["catalog-busy"]
    assert refused[0].hint
    assert names(catalog) == ["first"]


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.usefixtures("brief")
def test_a_server_throws_out_a_writer_that_stands_still(
    kind: str, open_catalog: Callable[[str], Catalog]
) -> None:
    """On SQLite nobody can: there the sweep ends frozen processes of the machine."""
    # Both are opened here, with the brief limits.
    with second(open_catalog(kind)) as catalog, second(catalog) as other:

        def stand_still() -> None:
            with other.write() as session:
                session.add(source("frozen"))
                session.flush()
                for _ in range(ATTEMPTS_MAX):  # each waits about as long as the server does
                    with suppress(CatalogUnavailable):
                        add(catalog, "next")
                        break
                session.execute(text("SELECT 1"))

        with pytest.raises(CatalogUnavailable) as caught:
            stand_still()
        assert caught.value.kind == "catalog-unavailable"
        assert names(catalog) == ["next"]


@pytest.mark.parametrize("kind", SERVERS)
def test_the_write_lock_goes_with_a_lost_connection(
    kind: str, open_catalog: Callable[[str], Catalog], request: pytest.FixtureRequest
) -> None:
    catalog = open_catalog(kind)
    server: Any = request.getfixturevalue(kind)
    with second(catalog) as other:

        def lose() -> None:
            with other.write() as session:
                session.add(source("lost"))
                session.flush()
                if kind == "postgresql":
                    pid = session.scalar(text("SELECT pg_backend_pid()"))
                    server.ask(f"SELECT pg_terminate_backend({pid})")
                else:
                    server.ask(f"KILL {session.scalar(text('SELECT CONNECTION_ID()'))}")
                add(catalog, "other")
                session.execute(text("SELECT 1"))

        with pytest.raises(CatalogUnavailable) as caught:
            lose()
        assert caught.value.kind == "catalog-unavailable"
        assert names(other) == ["other"]  # with a connection that works


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_goes_away_is_told_and_one_that_returns_is_used(
    kind: str, private_server: Callable[[str], Server]
) -> None:
    server = private_server(kind)
    catalog = Catalog(server.create_database())
    schema.migrate(catalog)
    add(catalog, "before")
    server.kill()
    for act in (
        lambda: names(catalog),
        lambda: add(catalog, "while"),
        lambda: schema.check(catalog),
    ):
        with pytest.raises(CatalogUnavailable) as caught:
            act()
        assert caught.value.kind == "catalog-unavailable"
    server.start()
    assert names(catalog) == ["before"]
    add(catalog, "after")
    server.restart()
    assert names(catalog) == ["after", "before"]  # its old connections are not tried in earnest
    catalog.close()


@pytest.mark.parametrize("kind", SERVERS)
def test_a_wrong_password_is_told_without_it(
    kind: str, open_catalog: Callable[[str], Catalog], caplog: pytest.LogCaptureFixture
) -> None:
    url = open_catalog(kind).url.set(password="not-the-password")  # noqa: S106 - wrong on purpose
    catalog = Catalog(url.render_as_string(hide_password=False))
    with pytest.raises(CatalogUnavailable) as caught:
        names(catalog)
    assert caught.value.kind in {"catalog-denied", "catalog-unavailable"}
    told = f"{caught.value!r} {caught.value.hint} {caplog.text} {catalog.url!r} {catalog.engine!r}"
    assert "not-the-password" not in told
    catalog.close()


def test_what_users_wrote_is_in_no_message(catalog: Catalog) -> None:
    with pytest.raises(DBAPIError) as caught, catalog.write() as session:
        session.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": "users-words"})
    assert "users-words" not in str(caught.value)


def test_the_settings_of_a_server_do_not_matter(catalog: Catalog) -> None:
    """The servers of these tests have another time zone, collation and character set than ours."""
    questions = {
        "sqlite": "SELECT 'utc', 'strict'",
        "postgresql": "SELECT lower(current_setting('TimeZone')), 'strict'",
        "mariadb": "SELECT replace(@@time_zone, '+00:00', 'utc'),"
        " if(@@sql_mode LIKE 'STRICT_ALL%', 'strict', '')",
    }
    with catalog.read() as session:
        answer = session.execute(text(questions[catalog.engine.dialect.name])).one()
    assert tuple(answer) == ("utc", "strict")


# SQLite's own troubles.


def test_a_read_only_catalog_can_still_be_read(open_catalog: Callable[[str], Catalog]) -> None:
    catalog = open_catalog("sqlite")
    add(catalog, "lab")

    def write() -> None:
        with catalog.write() as session:
            session.execute(text("PRAGMA query_only = ON"))
            session.add(source("more"))

    with pytest.raises(CatalogUnavailable) as caught:
        write()
    assert caught.value.kind == "catalog-read-only"
    assert names(catalog) == ["lab"]


def test_a_full_disk_is_told_and_nothing_is_half_written(
    open_catalog: Callable[[str], Catalog],
) -> None:
    catalog = open_catalog("sqlite")

    def fill() -> None:
        with catalog.write() as session:
            session.execute(text("PRAGMA max_page_count = 1"))  # no page more than there are
            for number in range(1000):
                session.add(source(f"s{number}"))
                session.flush()

    with pytest.raises(CatalogUnavailable) as caught:
        fill()
    assert caught.value.kind == "catalog-full"
    assert names(catalog) == []
