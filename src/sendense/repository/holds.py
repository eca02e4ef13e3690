"""Holds: a backup that nobody deletes until somebody lets it go.

Objects under `holds/<object id of the manifest>/<n>`, never changed: the one with the highest
number says whether the backup is held. A collector reads them before it decides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sendense.core.errors import Corrupt, Exists
from sendense.repository import format, record
from sendense.repository.format import Frame
from sendense.repository.keyed import KeyedStorage

FOLDER = "holds/"
DIGITS = 6
# What is said of a backup whose record is damaged.
NOBODY, WHY = "nobody knows whom", "the record that says so is damaged"
AT = datetime.fromtimestamp(0, tz=UTC)
TRIES_MAX = 20  # of two who hold and let go at once, one goes on behind the other


@dataclass(frozen=True, slots=True)
class Hold:
    """A backup is held from now on, or let go.

    Attributes:
        manifest_id: the backup's object id. number: counts the changes of this backup, from 1.
    """

    manifest_id: str
    backup_id: str
    number: int
    held: bool
    who: str
    why: str
    at: datetime


def list_held(storage: KeyedStorage) -> dict[str, Hold]:
    """Return what is held now, by the manifest's object id.

    Where a record is damaged nobody knows, so the backup counts as held until somebody says anew.
    """
    return scan(storage)[0]


def scan(storage: KeyedStorage) -> tuple[dict[str, Hold], list[Corrupt]]:
    """Return what is held now, by the manifest's object id, and the errors of damaged records."""
    newest: dict[str, int] = {}
    for stored in storage.list_objects(FOLDER):
        manifest_id, _, digits = stored.name.removeprefix(FOLDER).partition("/")
        if len(digits) == DIGITS and digits.isascii() and digits.isdigit():
            newest[manifest_id] = max(int(digits), newest.get(manifest_id, 0))
    held: dict[str, Hold] = {}
    damaged = []
    for manifest_id, number in newest.items():
        try:
            found = _get(storage, manifest_id, number)
        except Corrupt as error:
            damaged.append(error)
            found = Hold(manifest_id, "", number, held=True, who=NOBODY, why=WHY, at=AT)
        if found.held:
            held[manifest_id] = found
    return held, damaged


def put(storage: KeyedStorage, manifest_id: str, backup_id: str, change: "Change") -> Hold:
    """Hold a backup or let it go, behind all that was said before."""
    for _ in range(TRIES_MAX):
        number = 1 + max(_numbers(storage, manifest_id), default=0)
        made = Hold(manifest_id, backup_id, number, change.held, change.who, change.why, change.at)
        try:
            format.put_frame(storage, Frame.HOLD, _name(manifest_id, number), record.dump(made))
        except Exists:
            continue  # somebody was faster; or our own answer was lost, and saying it twice is safe
        return made
    raise Exists(f"others change the hold of {backup_id} all the time", backup_id=backup_id)


@dataclass(frozen=True, slots=True)
class Change:
    """What is said about a backup."""

    held: bool
    who: str
    why: str
    at: datetime


def _numbers(storage: KeyedStorage, manifest_id: str) -> Iterable[int]:
    for stored in storage.list_objects(f"{FOLDER}{manifest_id}/"):
        number = stored.name.rpartition("/")[2]
        if number.isascii() and number.isdigit():
            yield int(number)


def _get(storage: KeyedStorage, manifest_id: str, number: int) -> Hold:
    name = _name(manifest_id, number)
    found = record.load(Hold, format.get_frame(storage, Frame.HOLD, name), name=name)
    if (found.manifest_id, found.number) != (manifest_id, number):
        raise format.corrupt(name, "it is of another backup or has another number")
    return found


def _name(manifest_id: str, number: int) -> str:
    return f"{FOLDER}{manifest_id}/{number:0{DIGITS}d}"
