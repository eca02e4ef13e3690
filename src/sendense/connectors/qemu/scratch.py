"""The scratch folder of a VM: fleecing files, the NBD socket, and records of snapshots.

Everything in it is private to this user and to the QEMU process, which has to run as the same user
or as root. It is never a place for anything that must outlive a snapshot.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense.connectors.qemu import names
from sendense.core.errors import Denied

SOCKET_PATH_LENGTH_MAX = 107  # sun_path of Linux's unix sockets, less the NUL


def default_root() -> Path:
    """Return where scratch folders lie when nobody says otherwise."""
    return Path(tempfile.gettempdir()) / f"sendense-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Scratch:
    """The scratch folder of one VM below a root; created when first needed."""

    root: Path
    vm_uuid: str

    @property
    def folder(self) -> Path:
        """The VM's own folder."""
        return self.root / self.vm_uuid

    @property
    def socket(self) -> Path:
        """Where QEMU's NBD server listens; elsewhere if the folder's path is too long for that."""
        socket = self.folder / "nbd.sock"
        if len(os.fsencode(socket)) <= SOCKET_PATH_LENGTH_MAX:
            return socket
        return default_root() / names.token(str(socket)) / "nbd.sock"

    def prepare(self) -> None:
        """Create the folders, private. Raises Denied where somebody else owns one."""
        for folder in {self.root, self.folder, self.socket.parent.parent, self.socket.parent}:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = folder.lstat()
            if not folder.is_dir() or folder.is_symlink() or state.st_uid != os.getuid():
                raise Denied(
                    f"the scratch folder {folder} belongs to somebody else",
                    kind="scratch-folder",
                    hint="choose another one, or remove it",
                )
        for folder in (self.folder, self.socket.parent):
            folder.chmod(0o700)

    def create_fleece(self, token: str, key: int, nonce: str, size_bytes: int) -> Path:
        """Create the sparse file that takes the old content of what the guest overwrites."""
        path = self.folder / f"{token}-{key}-{nonce}.fleece"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        return path

    def write_record(self, token: str, record: dict[str, Any]) -> None:
        """Store what a finished snapshot is; whole or not at all."""
        path = self.folder / f"{token}.json"
        draft = path.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file)
        draft.replace(path)

    def find_record(self, token: str) -> dict[str, Any] | None:
        """Return what `write_record` stored, or None."""
        try:
            record = json.loads((self.folder / f"{token}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def list_tokens(self) -> set[str]:
        """Return the tokens of all snapshots that have files here."""
        pattern = re.compile(rf"([0-9a-f]{{{names.TOKEN_LENGTH}}})[-.]")
        if not self.folder.is_dir():
            return set()
        matches = (pattern.match(path.name) for path in self.folder.iterdir())
        return {match[1] for match in matches if match}

    def remove_files(self, token: str) -> None:
        """Remove all files of a snapshot."""
        for path in self._list_files(token):
            path.unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        """Remove the VM's folders where nothing is in them any more."""
        moved = self.socket.parent != self.folder
        for folder in (self.folder, self.socket.parent, *([default_root()] if moved else [])):
            with contextlib.suppress(OSError):  # something else is in it, or it is gone
                folder.rmdir()

    def _list_files(self, token: str) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from self.folder.glob(f"{token}[-.]*")
