"""Copies of an SQLite catalog, taken before a migration changes it."""

import logging
import os
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path

from sqlalchemy import URL

from sendense.db.failure import CatalogUnavailable

_log = logging.getLogger(__name__)

FOLDER = "catalog-copies"  # beside the catalog, and like it for nobody but its user
COPIES_KEPT = 5  # some upgrades back; a copy is as large as the catalog
_UNFINISHED = ".part"


def put(url: URL, revision: str, *, now: datetime) -> Path:
    """Copy an SQLite catalog as it is committed now; return the copy.

    The copy appears whole or not at all, and readable to its user only. Older copies beyond a few
    are removed. Other processes may go on reading and writing.

    Raises CatalogUnavailable, kind `catalog-copy-failed`; then there is no new copy.
    """
    source = Path(url.database or "").absolute()
    try:
        return _put(source, revision, now)
    except (OSError, sqlite3.Error) as error:
        raise CatalogUnavailable(
            f"the catalog cannot be copied before it is migrated: {error}",
            kind="catalog-copy-failed",
            hint=f"make room for a copy of {source}, then start again; nothing was changed",
        ) from error


def _put(source: Path, revision: str, now: datetime) -> Path:
    folder = source.parent / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{source.stem}-{revision}-{now:%Y%m%dT%H%M%S%f}Z.sqlite"
    unfinished = target.with_name(target.name + _UNFINISHED)
    try:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy(source, unfinished)
        unfinished.rename(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync(folder)
    _log.info("copied the catalog at revision %s to %s", revision, target)
    # Where the clock was set back the new one is not the newest by name; it stays all the same.
    others = [path for path in _list(folder) if path != target]
    for old in others[: -(COPIES_KEPT - 1)]:
        old.unlink(missing_ok=True)
    return target


def _list(folder: Path) -> list[Path]:
    """Return the copies, oldest first: their names end with their times."""
    return sorted(folder.glob("*Z.sqlite"), key=lambda path: path.stem.rpartition("-")[2])


def _copy(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(source, timeout=30)) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing)
        writing.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
