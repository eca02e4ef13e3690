"""Credentials under the real engine: opened by the worker alone, in no table of the engine."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sendense import app
from sendense.connectors.base import Source
from sendense.connectors.fake.source import FakePlatform
from sendense.db.tables import SourceRow
from sendense.hub.keyfile import FILE_NAME
from sendense.hub.sources import service as sources
from sendense.hub.sources.schemas import CreateSource
from tests.workflow.world import World

CANARY = "canary-Zq7!secret"
GIVEN = {"username": "me@vsphere.local", "password": CANARY}


class NamedPlatform(FakePlatform):
    """A platform with an identity of its own."""

    def identify(self) -> str:
        return "uuid-of-vc1"


@pytest.fixture
def logins(world: World) -> list[Any]:
    """A source that is logged in to, and what its platform was logged in with."""
    seen: list[Any] = []
    platform = NamedPlatform()
    platform.add_vm("web", 4096)

    def log_in(_kind: str, _config: Any, credentials: Any = None) -> Source:
        seen.append(credentials)
        return platform

    hub = replace(app.create_hub(world.settings, world.catalog, world.client), open_source=log_in)

    @contextmanager
    def open_source(row: SourceRow) -> Iterator[Source]:
        yield sources.open_registered(hub, row)

    engine: Any = world.worker.engine
    engine._context = replace(engine._context, open_source=open_source)
    wanted = {"name": "vc1", "type": "vsphere", "config": {"host": "vc1"}, "credentials": GIVEN}
    with world.catalog.write() as session:
        made = sources.create(session, hub, CreateSource.model_validate(wanted))
        world.source_id = made.id
    return seen


def row_of(world: World) -> SourceRow:
    with world.catalog.read() as session:
        return session.get_one(SourceRow, world.source_id)


def holds(folder: Path, found: Callable[[bytes], bool]) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and found(path.read_bytes())]


def test_a_worker_logs_in_and_no_file_tells_with_what(
    world: World, logins: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        job = world.discover()
    assert job.status == "completed"
    assert logins == [GIVEN] * 2  # to discover, and to look for what was left behind
    assert row_of(world).uuid == "uuid-of-vc1"
    folder = world.settings.data_dir
    assert holds(folder, lambda content: CANARY.encode() in content) == []
    assert CANARY not in caplog.text
    control = holds(folder, lambda content: GIVEN["username"].encode() in content)
    assert control, "the search finds what is kept in clear"
    assert any(path.name.startswith("engine") for path in folder.iterdir())


def test_a_wrong_key_fails_what_logs_in_until_the_right_one_is_back(
    world: World, logins: list[Any]
) -> None:
    key = world.settings.data_dir / FILE_NAME
    right = key.read_text()
    key.write_text("ab" * 32)
    job = world.discover()
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["kind"] == "credentials-key-wrong"
    assert "set-credentials" in job.error["hint"]
    assert "another key" in row_of(world).trouble
    assert logins == []
    key.write_text(right)
    assert world.discover().status == "completed"
    assert logins == [GIVEN] * 2
    assert row_of(world).trouble == ""
