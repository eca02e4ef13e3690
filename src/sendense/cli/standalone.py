"""A repository given by its path: no server, no database, only the repository itself."""

from dataclasses import dataclass
from pathlib import Path

from sendense.cli.command import Session


@dataclass(frozen=True)
class Target:
    """What to restore, and where to."""

    backup_id: str
    disk_index: int
    path: Path
    file_format: str
    overwrite: bool


def is_path(name: str) -> bool:
    """Return whether an argument is a path, not the name of a repository the server knows.

    A path holds a `/`, or is a directory that exists.
    """
    return "/" in name or Path(name).is_dir()


def list_backups(session: Session, path: Path) -> None:
    """List the backups inside a repository."""
    raise NotImplementedError


def check(session: Session, path: Path, *, read_data: bool) -> None:
    """Check that a repository is whole."""
    raise NotImplementedError


def restore(session: Session, path: Path, target: Target) -> None:
    """Write a disk of a backup to a file."""
    raise NotImplementedError


def stats(session: Session, path: Path) -> None:
    """Count what a repository holds."""
    raise NotImplementedError
