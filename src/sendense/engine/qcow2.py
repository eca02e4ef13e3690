"""Writes a qcow2 image through qemu-nbd: the format's own program knows it best."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

from sendense.core import units
from sendense.core.errors import Invalid, Unavailable
from sendense.engine.control import Control
from sendense.nbd import process
from sendense.nbd.client import Client

CREATE_SECONDS_MAX = 60.0  # it takes 20 ms; a slow NFS server takes longer


class Qcow2File:
    """A qcow2 image being written. Close it whatever happens; `finish` makes it durable.

    Raises Invalid, kind `size-not-sectors`, for a size that qcow2 cannot hold.
    """

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        if size_bytes % units.SECTOR:
            raise Invalid(
                f"the disk has {size_bytes} bytes, and qcow2 holds whole sectors of {units.SECTOR}",
                kind="size-not-sectors",
                hint="restore to a raw file",
            )
        _create(path, size_bytes=size_bytes)
        with ExitStack() as stack:
            address = stack.enter_context(
                process.serve_image(path, image_format="qcow2", writable=True)
            )
            self._client = stack.enter_context(Client.connect(address))
            self._open = stack.pop_all()

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at their place. Raises NoSpace or Unavailable."""
        self._client.write(offset, data)

    def finish(self, control: Control) -> None:
        """Make all of it durable and check its length."""
        control.run_apart(self._client.flush, name="sync-target")
        if self._client.size_bytes != self._size_bytes:
            raise Unavailable(
                f"{self._path} holds {self._client.size_bytes} bytes after the restore, "
                f"the disk {self._size_bytes}",
                kind="target-failed",
            )

    def close(self) -> None:
        """Stop qemu-nbd."""
        self._open.close()


def _create(path: Path, *, size_bytes: int) -> None:
    path.touch(mode=0o600, exist_ok=False)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size_bytes)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=CREATE_SECONDS_MAX)
    except FileNotFoundError as error:
        raise Unavailable(
            "qemu-img is not installed", hint="install qemu-utils", kind="program-missing"
        ) from error
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or b""
        raise Unavailable(
            f"qemu-img cannot create {path}: {said.decode(errors='replace').strip() or error}",
            kind="target-failed",
        ) from error
