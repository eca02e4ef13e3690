"""A private folder for the socket of a server process, removed even after a kill."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ORPHAN_SECONDS_MIN = 60.0  # far above the time between making a folder and locking it
_PREFIX = "sendense-nbd-"


@contextlib.contextmanager
def open_private() -> Iterator[Path]:
    """Make a folder with mode 0700 and remove it with all its contents at the end.

    Those of processes that were killed are removed first: nobody locks them any more.
    """
    _remove_orphans()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # 0700: nobody else may connect
    owned = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The kernel drops the lock with this process, however that ends; see _remove_orphans.
        fcntl.flock(owned, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owned)


def _remove_orphans() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, in use, or gone meanwhile
            facts = folder.lstat()
            if facts.st_uid != os.geteuid() or time.time() - facts.st_mtime < ORPHAN_SECONDS_MIN:
                continue
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            found = os.open(folder, flags)
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(found)
