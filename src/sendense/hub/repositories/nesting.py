"""Is there a repository around a path? Two in one another would meet in checks and clean-ups."""

import contextlib
from dataclasses import replace
from pathlib import Path

from sendense.core.errors import Conflict, Denied, NotFound
from sendense.repository import descriptor
from sendense.repository.storage import locations


def find_around(path: Path) -> Path | None:
    """Return the folder of the repository, registered or not, that a path lies in, or None."""
    for folder in path.parents:
        with contextlib.suppress(OSError):  # what may not be looked into is no place to write to
            if (folder / descriptor.NAME).exists():
                return folder
    return None


def check_not_nested(path: Path) -> None:
    """Refuse a repository in a repository: a check or clean-up of one would meet the other."""
    around = find_around(path)
    if around is not None:
        raise Conflict(
            f"{path} lies inside the repository at {around}",
            kind="repository-folder-not-empty",
            hint="choose a folder outside of repositories",
            path=str(path),
        )


def check_url_not_nested(url: str) -> None:
    """Refuse a repository below another's prefix, as `check_not_nested` does for folders."""
    place = locations.parse(url)
    parts = place.prefix.split("/") if place.prefix else []
    for length in range(len(parts)):
        around = replace(place, prefix="/".join(parts[:length]))
        # A credential may be good for its own prefix only.
        with contextlib.suppress(NotFound, Denied):
            locations.open_place(around).size(descriptor.NAME)
            raise Conflict(
                f"{url} lies inside the repository at {place.bucket}/{around.prefix}",
                kind="repository-folder-not-empty",
                hint="choose a prefix outside of repositories",
                path=url,
            )
