"""Where the key is that seals credentials: systemd, a setting, or a file that we make.

The first of these that is there counts:

    $CREDENTIALS_DIRECTORY/sendense-credentials-key   systemd's LoadCredential=
    SENDENSE_CREDENTIALS_KEY                           the key itself
    SENDENSE_CREDENTIALS_KEY_FILE                      a file that holds it
    <data dir>/credentials.key                         made at first need

It is written as 64 hexadecimal digits.
"""

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from sendense.core.errors import Conflict, Denied, Invalid, SendenseError, Unavailable
from sendense.core.ids import IdSource
from sendense.hub.sealing import KEY_BYTES, Key, Secret

FILE_NAME = "credentials.key"
SYSTEMD_NAME = "sendense-credentials-key"
_BYTES_MAX = 1024  # a key has 65; more is another file
_PATTERN = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}")
_TOKEN_LENGTH = 8  # of the hidden name: two processes never meet
_VARIABLE = "SENDENSE_CREDENTIALS_KEY"
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class KeyPlaces:
    """The places to look for the key; see the module.

    Attributes:
        folder: the data directory.
        given: the key itself, or "".
        file: the file that a setting names.
        systemd: the folder that systemd gives a service.
    """

    folder: Path
    ids: IdSource = field(repr=False)
    given: str = field(default="", repr=False)
    file: Path | None = None
    systemd: Path | None = None

    def read(self) -> Key:
        """Return the key; see sealing.KeyPlace."""
        if self.systemd is not None and (path := self.systemd / SYSTEMD_NAME).exists():
            # systemd lets the service read it by an access list, whose mask looks like a group's
            # right; nobody else may enter the folder.
            return _read(path, forbidden=stat.S_IRWXO)
        if self.given:
            return _parse(self.given, place=f"the variable {_VARIABLE}")
        return _read(self.file or self._own, forbidden=_GROUP_AND_OTHERS)

    def read_or_make(self) -> Key:
        """Return the key; see sealing.KeyPlace."""
        try:
            return self.read()
        except Conflict:
            if self.file is not None:
                raise  # somebody means a key that exists, and we do not know where its copies are
        hidden = self._own.with_name(f".{FILE_NAME}.{self.ids.token(_TOKEN_LENGTH)}")
        _make(self._own, hidden, self.ids.random_bytes(KEY_BYTES))
        return self.read()  # where another process was faster, its key

    def put_back(self, text: str) -> None:
        """Make a key that was exported the one in use, where there is none yet.

        Raises Conflict, kind `credentials-key-differs`, where another key is in use, and what
        `read` raises but for a missing key.
        """
        wanted = _parse(text, place="the export")
        try:
            found = self.read()
        except Conflict:
            if self.file is not None:
                raise
            hidden = self._own.with_name(f".{FILE_NAME}.{self.ids.token(_TOKEN_LENGTH)}")
            _make(self._own, hidden, wanted.secret.value)
            found = self.read()
        if found.id != wanted.id:
            raise Conflict(
                f"the key of the credentials at {found.place} is another one than the export's",
                kind="credentials-key-differs",
                hint="where nothing is sealed with it, take it away: the export brings its own",
            )

    @property
    def _own(self) -> Path:
        return self.folder / FILE_NAME


def _read(path: Path, *, forbidden: int) -> Key:
    try:
        # Without waiting: what is no file, such as a FIFO, might never answer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Conflict(
            f"the key of the credentials is not there: {path} does not exist",
            kind="credentials-key-missing",
            hint="put it back from where you keep it; where it is lost for good, write 64 random"
            f" hexadecimal digits to {path} (`openssl rand -hex 32`), readable by its owner only,"
            " and give each source its credentials again by `sendense source set-credentials`",
            path=str(path),
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        _check(path, os.fstat(handle), forbidden)
        content = os.read(handle, _BYTES_MAX)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(handle)
    return _parse(content.decode(errors="replace"), place=str(path))


def _check(path: Path, status: os.stat_result, forbidden: int) -> None:
    """Refuse what is no file of its owner's alone."""
    if not stat.S_ISREG(status.st_mode):
        raise _invalid(str(path), "is not a file")
    if status.st_mode & forbidden:
        raise Denied(
            f"{path} may be read or changed by others: its mode is"
            f" {stat.S_IMODE(status.st_mode):04o}",
            kind="credentials-key-exposed",
            hint=f"`chmod 0600 {path}`; if others may have read it, make a new key and change"
            " the passwords of the sources",
            path=str(path),
        )


def _parse(text: str, *, place: str) -> Key:
    """Return the key that a text holds, which no message repeats."""
    if _PATTERN.fullmatch(text.strip()) is None:
        raise _invalid(place, f"does not hold {2 * KEY_BYTES} hexadecimal digits")
    return Key(Secret(bytes.fromhex(text.strip())), place)


def _make(path: Path, hidden: Path, secret: bytes) -> None:
    """Write a key where there is none; whole or not at all, and never over another one."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o600)  # whatever the umask took away
                file.write(secret.hex().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Unavailable(
            f"cannot make the key of the credentials at {path}: {_reason(error)}",
            kind="credentials-key-unwritable",
            hint="make room and give this user the right to write there, or name a key of your own"
            " by SENDENSE_CREDENTIALS_KEY_FILE",
            path=str(path),
        ) from error


def _unreadable(path: Path, error: OSError) -> SendenseError:
    message = f"cannot read the key of the credentials at {path}: {_reason(error)}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Denied(
            message,
            kind="credentials-key-unreadable",
            hint="it must belong to the user that the server and its workers run as",
            path=str(path),
        )
    return Unavailable(
        message,
        kind="credentials-key-unreadable",
        hint="look after the file system that it lies on",
        path=str(path),
    )


def _invalid(place: str, what: str) -> Invalid:
    return Invalid(
        f"{place} {what}, which the key of the credentials must be",
        kind="credentials-key-invalid",
        hint="put the right key back; `openssl rand -hex 32` writes a new one, after which each"
        " source needs its credentials again",
    )


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
