"""A disk over our NBD server, a repository in memory, and the engine between them."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sendense.core import units
from sendense.core.clock import SystemClock
from sendense.core.extent import Extent
from sendense.core.ids import SeededIds
from sendense.engine import backup
from sendense.engine.backup import EngineSettings, Task, Transfer
from sendense.engine.control import Control
from sendense.engine.plan import INCREMENTAL, Decision, Mode
from sendense.engine.progress import Progress
from sendense.nbd.address import Address
from sendense.nbd.server import Server
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.manifest import DiskIdentity, Manifest, ManifestDraft, VmRecord
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.storage.base import Storage
from sendense.repository.storage.memory import MemoryStorage

KEY = 2000
CHUNK = 128 * units.KIB
PAGE = 4096
FULL = Decision(Mode.FULL)
WAIT_SECONDS = 10  # a deadline for a test that hangs, not a time it takes


class SparseDisk:
    """A disk of any size that holds only the pages written to it; an export of our NBD server.

    Attributes:
        on_read: called with offset and length before each read is answered.
        reads: how many bytes were asked for.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.pages: dict[int, bytes] = {}
        self.on_read: Callable[[int, int], None] = lambda _offset, _length: None
        self.reads = 0
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; zeros where nothing was written."""
        self.on_read(offset, length)
        with self._lock:
            self.reads += length
        first, last = offset // PAGE, -(-(offset + length) // PAGE)
        whole = b"".join(self.pages.get(page, bytes(PAGE)) for page in range(first, last))
        return whole[offset - first * PAGE :][:length]

    def write_page(self, page: int, data: bytes) -> None:
        """Write one page."""
        self.pages[page] = data.ljust(PAGE, b"\0")

    def fill(self, start: int, length: int, *, content: Callable[[int], bytes]) -> None:
        """Write all pages of a range."""
        for page in range(start // PAGE, -(-(start + length) // PAGE)):
            self.write_page(page, content(PAGE))

    def list_allocated(self) -> Iterator[Extent]:
        """Yield extents over the whole disk, pages never written as zero ones."""
        position = 0
        for page in sorted(self.pages):
            start = page * PAGE
            if start > position:
                yield Extent(position, start - position, zero=True)
            end = min(start + PAGE, self.size_bytes)
            yield Extent(start, end - start)
            position = end
        if position < self.size_bytes:
            yield Extent(position, self.size_bytes - position, zero=True)


@dataclass
class View:
    """A disk of a snapshot, as a connector would give it."""

    address: Address
    disk: SparseDisk
    changes: list[Extent] = field(default_factory=list)
    changes_error: Exception | None = None
    connections_max: int = 4

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self.disk.size_bytes

    def list_allocated(self) -> Iterator[Extent]:
        """Yield the disk's own extents."""
        return self.disk.list_allocated()

    def list_changed(self) -> Iterator[Extent]:
        """Yield the extents given, true or not."""
        if self.changes_error is not None:
            raise self.changes_error
        return iter(self.changes)


@contextmanager
def served(disk: SparseDisk) -> Iterator[View]:
    """Serve a disk on a socket of its own."""
    with tempfile.TemporaryDirectory(prefix="sendense-test-") as folder:
        socket_path = Path(folder) / "nbd.sock"
        with Server({"": disk}, socket_path=str(socket_path)):
            yield View(Address(socket_path=str(socket_path)), disk)


class Lab:
    """A repository, and backups of one disk in it."""

    def __init__(self, storage: Storage | None = None, *, chunk_size: int = CHUNK) -> None:
        self.storage = storage or MemoryStorage()
        self.repository = Repository.create(
            self.storage,
            RepositorySettings(chunk_size=chunk_size, root_key=bytes(range(32))),
            clock=SystemClock(),
            ids=SeededIds(1),
            reserve=NO_RESERVE,
        )
        self.progress = Progress()
        self.control = Control()
        self.settings = EngineSettings()
        self.count = 0

    def transfer(
        self, view: View, *, session_id: str, parent: str | None = None, full: bool = False
    ) -> Transfer:
        """Transfer a disk into a session that was begun; the session names the moment too."""
        disk = DiskIdentity(KEY, 0, "disk", "uuid-1", view.size_bytes)
        task = Task(
            view=view,
            open_writer=lambda mode: self.repository.open_disk_writer(
                session_id, disk, moment=session_id, mode=mode, parent_backup_id=parent
            ),
            decision=FULL if full or parent is None else INCREMENTAL,
            moment=session_id,
            change_id=f"change-{session_id}",
        )
        return backup.back_up_disk(
            task, settings=self.settings, control=self.control, progress=self.progress
        )

    def begin(self, parent: str | None = None) -> str:
        """Begin a session and return its id, which is the backup's id too."""
        self.count += 1
        session_id = f"s{self.count}"
        self.repository.begin_session(session_id, parents=[parent] if parent else [])
        return session_id

    def commit(self, session_id: str) -> Manifest:
        """Commit a session whose disk is finished."""
        now = datetime(2026, 1, 1, tzinfo=UTC)
        vm = VmRecord("fake", "lab", "lab", "vm-1", "vm")
        draft = ManifestDraft(session_id, vm, (KEY,), session_id, "none", "auto", now, now)
        return self.repository.commit(session_id, draft)

    def back_up(
        self,
        disk: SparseDisk,
        *,
        parent: str | None = None,
        changes: list[Extent] | None = None,
        full: bool = False,
    ) -> tuple[str, Transfer]:
        """Back up a disk as it is now and return the backup's id and the transfer."""
        session_id = self.begin(parent)
        with served(disk) as view:
            view.changes = changes or []
            done = self.transfer(view, session_id=session_id, parent=parent, full=full)
        self.commit(session_id)
        return session_id, done

    def read_back(self, backup_id: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a backup."""
        with self.repository.open_disk_reader(backup_id, KEY) as reader:
            return reader.read(offset, reader.size_bytes if length is None else length)
