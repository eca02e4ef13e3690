"""One measured run of Sendense's data plane, in a process of its own: prints JSON figures.

    python -m benchmarks.ours full|incremental|restore|verify …

What is timed is what a worker does for a job: open the repository, begin the session, transfer,
commit. The interpreter's start is not, for a worker runs for weeks.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import counted, memory
from benchmarks.counted import CountedStorage
from sendense.core.clock import SystemClock
from sendense.core.extent import Extent
from sendense.core.ids import SystemIds
from sendense.engine import backup, restore
from sendense.engine.backup import EngineSettings, Task
from sendense.engine.control import Control
from sendense.engine.plan import INCREMENTAL, Decision, Mode
from sendense.engine.progress import Progress
from sendense.nbd.address import Address
from sendense.nbd.client import Client
from sendense.repository import chunk
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.manifest import DiskIdentity, ManifestDraft, VmRecord
from sendense.repository.repository import Repository
from sendense.repository.storage.local import LocalStorage
from sendense.repository.verify import run as verify
from sendense.repository.verify.run import Level

KEY = 2000
ROOT_KEY = bytes(range(32))  # encryption is what users run with


@dataclass(frozen=True)
class SocketView:
    """A disk behind a unix socket, with the changed extents of a list."""

    address: Address
    size_bytes: int
    changes: tuple[Extent, ...]
    connections_max: int = 16

    def list_allocated(self) -> Iterator[Extent]:
        """Yield what the server says of allocation."""
        with Client.connect(self.address, contexts=["base:allocation"]) as client:
            yield from client.list_allocated()

    def list_changed(self) -> Iterator[Extent]:
        """Yield the extents given."""
        return iter(self.changes)


def open_view(socket: Path, changes: Path | None) -> SocketView:
    """Return the view of an export."""
    address = Address(socket_path=str(socket))
    with Client.connect(address) as client:
        size = client.size_bytes
    listed = json.loads(changes.read_text()) if changes else []
    return SocketView(address, size, tuple(Extent(start, length) for start, length in listed))


def create_repository(repository: Path, *, chunk_size: int = chunk.SIZE_DEFAULT) -> Repository:
    """Make a repository in a new folder as users have it, and open it."""
    repository.mkdir(parents=True)
    return Repository.create(
        LocalStorage(repository),
        RepositorySettings(root_key=ROOT_KEY, chunk_size=chunk_size),
        clock=SystemClock(),
        ids=SystemIds(),
    )


def open_repository(repository: Path, storage: LocalStorage | None = None) -> Repository:
    """Open the repository in a folder as a worker does."""
    return Repository.open(
        storage or LocalStorage(repository),
        root_key=ROOT_KEY,
        clock=SystemClock(),
        ids=SystemIds(),
    )


def back_up(
    view: SocketView,
    repository: Path,
    *,
    name: str,
    parent: str | None,
    chunk_size: int = chunk.SIZE_DEFAULT,
) -> dict[str, int]:
    """Back up a disk, commit, and return the bytes that were counted."""
    if not repository.exists():
        create_repository(repository, chunk_size=chunk_size)
    storage = CountedStorage(repository)
    place = open_repository(repository, storage)
    place.begin_session(name, parents=[parent] if parent else [])
    disk = DiskIdentity(KEY, 0, "disk", "uuid", view.size_bytes)
    task = Task(
        view=view,
        open_writer=lambda mode: place.open_disk_writer(
            name, disk, moment=name, mode=mode, parent_backup_id=parent
        ),
        decision=INCREMENTAL if parent else Decision(Mode.FULL),
        moment=name,
    )
    progress = Progress()
    done = backup.back_up_disk(
        task, settings=EngineSettings(), control=Control(), progress=progress
    )
    assert done.record.mode is task.decision.mode, done.decision
    now = datetime.now(tz=UTC)
    vm = VmRecord("image", "bench", "source", "vm", "vm")
    place.commit(name, ManifestDraft(name, vm, (KEY,), name, "none", "auto", now, now))
    return {
        "bytes_read": done.record.bytes_read,
        "bytes_new": done.record.bytes_new,
        "bytes_stored": done.record.bytes_stored,
        **counted.count_metadata(storage.put),
    }


def restore_disk(repository: Path, target: Path, *, name: str) -> dict[str, int]:
    """Restore a backup's disk to a raw file and return the bytes that were counted."""
    place = open_repository(repository)
    with place.open_disk_reader(name, KEY) as reader:
        done = restore.restore_disk_to_file(
            reader,
            restore.RestoreRequest(target, overwrite=True),
            control=Control(),
            progress=Progress(),
        )
    return {"bytes_written": done.bytes_written}


def verify_all(repository: Path) -> dict[str, int]:
    """Decode all that is stored, as a verification at its usual level does."""
    report = verify.verify(open_repository(repository), Level.DECODED)
    assert report.clean, report
    return {"bytes_read": report.verified_bytes}


def main() -> None:
    """Run what the command line says and print the figures."""
    parser = argparse.ArgumentParser(prog="benchmarks.ours")
    parser.add_argument("action", choices=["full", "incremental", "restore", "verify"])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--name")
    parser.add_argument("--chunk-size", type=int, default=chunk.SIZE_DEFAULT)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--parent")
    parser.add_argument("--changes", type=Path)
    parser.add_argument("--target", type=Path)
    given = parser.parse_args()
    with memory.watched() as peak:
        cpu, started = time.process_time(), time.perf_counter()
        if given.action == "restore":
            found = restore_disk(given.repository, given.target, name=given.name)
        elif given.action == "verify":
            found = verify_all(given.repository)
        else:
            view = open_view(given.socket, given.changes)
            found = back_up(
                view,
                given.repository,
                name=given.name,
                parent=given.parent,
                chunk_size=given.chunk_size,
            )
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    figures = {"began": started, "seconds": seconds, "cpu": cpu, "memory": peak[0]}
    print(json.dumps({**figures, **found}))


if __name__ == "__main__":
    main()
