"""The real `image` connector under the workflows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sendense import app
from sendense.connectors.base import Source
from sendense.db.tables import SourceRow
from sendense.hub.sources import service as sources
from sendense.hub.sources.schemas import CreateSource
from tests.workflow.conftest import content
from tests.workflow.world import World

BIG_BYTES = 109_521_666_048
SMALL_BYTES = 5_368_709_120
STORED_BYTES_MAX = 2 * 1024 * 1024


@pytest.fixture
def images(world: World, seed: int) -> tuple[Path, Path]:
    """Two sparse disks of the VM `pgtest1`, in the data directory, discovered."""
    hub = app.create_hub(world.settings, world.catalog, world.client)
    folder = world.settings.data_dir / "images"
    paths = folder / "a.raw", folder / "b.raw"
    for path, size in zip(paths, (BIG_BYTES, SMALL_BYTES), strict=True):
        with path.open("wb") as file:
            file.write(content(seed, 65536))
            file.seek(size - 4096)
            file.write(content(seed + 1, 4096))

    @contextmanager
    def open_source(row: SourceRow) -> Iterator[Source]:
        yield hub.open_source(row.type, row.config)

    engine: Any = world.worker.engine
    engine._context = replace(engine._context, open_source=open_source)
    config = {"vms": [{"name": "pgtest1", "disks": [str(path) for path in paths]}]}
    with world.catalog.write() as session:
        wanted = CreateSource.model_validate({"name": "images", "type": "image", "config": config})
        world.source_id = sources.create(session, hub, wanted).id
    assert world.discover().status == "completed"
    return paths


def _ends(path: Path) -> tuple[int, bytes, bytes]:
    """Return size, start and end of a file too large to compare in a fast test."""
    with path.open("rb") as file:
        start = file.read(65536)
        size = file.seek(0, os.SEEK_END)
        file.seek(size - 4096)
        return size, start, file.read()


def test_the_sparse_disks_of_the_existing_client_are_backed_up(
    world: World, images: tuple[Path, Path]
) -> None:
    one = world.back_up("pgtest1", disk_id=0, backup_type="full")
    both = world.back_up("pgtest1")

    assert (one.status, one.total_bytes, one.warnings) == ("completed", BIG_BYTES, [])
    assert (both.status, both.total_bytes) == ("completed", BIG_BYTES + SMALL_BYTES)
    assert both.bytes_new <= 2 * 512 * 1024
    with world.repository() as repository:
        assert repository.storage_bytes() < STORED_BYTES_MAX
    _, job_id = world.start_restore(both.id, "b.raw", disk_id=1)
    assert world.wait(job_id).status == "completed"
    assert _ends(world.target("b.raw")) == _ends(images[1])


def test_an_image_written_while_it_is_read_is_told_about(
    world: World, images: tuple[Path, Path]
) -> None:
    world.spy.calls["transfer"] = lambda: os.utime(images[1])

    backup = world.back_up("pgtest1", disk_id=1)

    assert (backup.status, backup.consistency) == ("completed", "none")
    assert any("was written while it was read" in warning for warning in backup.warnings)
