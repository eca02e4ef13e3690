import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow import world as worlds
from tests.workflow.world import World

DISK_BYTES = 3 * 1024 * 1024 + 512  # a multiple of sectors, not of chunks


def content(seed: int, length: int = DISK_BYTES) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.fixture
def world(tmp_path: Path, seed: int) -> Iterator[World]:
    """A running worker; VMs `web` with two disks and `db` with one are discovered."""
    made = worlds.build(tmp_path, worlds.Setting())
    worlds.register(made)
    made.lab.add_vm("web", content(seed), content(seed + 1, 512 * 1024))
    made.lab.add_vm("db", content(seed + 2, 1024 * 1024))
    thread = threading.Thread(target=made.worker.run, args=(made.stop,))
    thread.start()
    try:
        job = made.discover()
        assert job.status == "completed", job.error
        yield made
    finally:
        made.stop.set()
        thread.join()
