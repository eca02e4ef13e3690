"""Which places on this machine requests may name: a caller of the API is no shell user."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from sendense.core.errors import Denied, Invalid

PATH_LENGTH_MAX = 4095  # Linux: PATH_MAX less its NUL
PART_LENGTH_MAX = 255  # NAME_MAX of every common file system

# The data directory also holds catalog, engine tables, locks and keys. Of its folders only these
# are for what users name in requests; a list of what is private would miss the next private file.
USER_FOLDERS = ("backups", "repositories", "restores", "images")


class AllowedDirs:
    """The places that requests may name: the user folders of the data directory, and more.

    Safe to share between threads; holds no state but the paths.
    """

    def __init__(self, data_dir: Path, allowed: Sequence[Path] = ()) -> None:
        self._data_dir = Path(os.path.realpath(data_dir))
        self._roots = tuple(Path(os.path.realpath(path)) for path in allowed)

    @property
    def described(self) -> str:
        """The allowed places in words, for hints."""
        own = ", ".join(USER_FOLDERS)
        places = [f"{self._data_dir}/{{{own}}}", *(str(root) for root in self._roots)]
        return ", ".join(places)

    def resolve(self, path: str) -> Path:
        """Return the path with all links resolved; it need not exist.

        Raises Invalid for what is no absolute path, and Denied, kind `path-not-allowed`, for a
        path that leads, links followed, to anywhere but an allowed place. What a link points to
        may change after this: ask again at the time of use.
        """
        _check(path)
        real = _follow(path)
        if not self._allows(real):
            raise Denied(
                f"{path} is outside the allowed directories",
                kind="path-not-allowed",
                hint=f"allowed are {self.described}; "
                "more by --allow-dir or SENDENSE_ALLOWED_DIRS of the server",
                path=path,
            )
        return real

    def _allows(self, real: Path) -> bool:
        # First the data directory: it stays private also where an allowed directory holds it.
        if real.is_relative_to(self._data_dir):
            inside = real.relative_to(self._data_dir).parts
            return bool(inside) and inside[0] in USER_FOLDERS
        return any(real.is_relative_to(root) for root in self._roots)


def _follow(path: str) -> Path:
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Invalid(
                f"path {path[:200]!r} leads into a circle of links", kind="path-invalid"
            ) from None
    # Part of it does not exist yet, or may not be looked into: what exists is followed.
    return Path(os.path.realpath(path))


def _check(path: str) -> None:
    def refuse(reason: str) -> Invalid:
        return Invalid(f"path {path[:200]!r} {reason}", kind="path-invalid")

    if "\0" in path:
        raise refuse("holds a NUL byte")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise refuse("is not valid text") from None
    if not path.startswith("/"):
        raise refuse("is not absolute")
    parts = path.split("/")
    if ".." in parts:
        raise refuse("holds `..`")
    if len(encoded) > PATH_LENGTH_MAX or any(
        len(os.fsencode(part)) > PART_LENGTH_MAX for part in parts
    ):
        raise refuse("is too long")
