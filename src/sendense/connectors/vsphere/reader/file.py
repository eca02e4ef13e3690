"""For development and tests: raw files in the place of a vCenter's disks, by nbdkit's file plugin.

The content is whatever somebody put there: `<file_dir>/<snapshot>/<key>.raw` for a disk of a
snapshot, `<file_dir>/<VM>/<key>.raw` for one of a powered-off VM.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense.connectors.vsphere.reader import installation, nbdkit
from sendense.connectors.vsphere.reader.base import ReadTask
from sendense.core.errors import Denied, Invalid, NotFound
from sendense.nbd.address import Address

CONNECTIONS_MAX = 4  # as many as the engine opens at most
WARNING = "reader 'file' is for development only: disks are read from files, not from vCenter"
_MOREF = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class FileReader:
    """The stand-in for `VddkReader`, as `Reader` promises.

    Attributes:
        file_dir: an allowed place with all links resolved, as the configuration checked it.
    """

    file_dir: Path
    connections_max: int = CONNECTIONS_MAX

    @property
    def name(self) -> str:
        """`file`."""
        return "file"

    @property
    def warning(self) -> str | None:
        """That these are not the disks of a vCenter."""
        return WARNING

    def probe(self) -> str:
        """Return nbdkit's version and the folder."""
        version = installation.require_nbdkit()
        if not self.file_dir.is_dir():
            raise Invalid(f"file_dir {self.file_dir} is no folder", kind="source-config-invalid")
        return f"nbdkit {version} with its file plugin, files in {self.file_dir}"

    @contextlib.contextmanager
    def open(self, task: ReadTask) -> Iterator[Address]:
        """Serve the file that stands for a disk."""
        path = self._find(task)
        mode = [] if task.writable else ["--readonly"]
        arguments = [*mode, "file", f"file={path}"]
        with nbdkit.serve(arguments, what=str(task), size_bytes=task.size_bytes) as address:
            yield address

    def _find(self, task: ReadTask) -> Path:
        """Return the file. Names come from a server: they must not lead out of the folder."""
        owner = task.snapshot_moref or task.vm_moref
        if not _MOREF.fullmatch(owner):
            raise Invalid(f"{owner[:128]!r} is no managed object reference", kind="vm-gone")
        path = self.file_dir / owner / f"{task.key}.raw"
        found = path.resolve()
        if not found.is_relative_to(self.file_dir.resolve()):
            raise Denied(f"{path} leads out of file_dir", kind="path-not-allowed")
        if not found.is_file():
            kind = "snapshot-lost" if task.snapshot_moref else "disk-unknown"
            raise NotFound(
                f"there is no file {path} for {task}", kind=kind, hint="reader 'file' needs it"
            )
        return found
