"""Checkpoints: how far a disk has come, for the next process to go on where this one stopped.

Each checkpoint says what is new since the one before. One owner at a time adds to them: a new one
takes a new number, and its record fixes which checkpoints of its predecessors it builds on, so
what a predecessor that only seemed dead adds later is never read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sendense.core.clock import Clock
from sendense.core.errors import Conflict, Corrupt, Exists, NotFound
from sendense.repository import format, record, session
from sendense.repository.format import Frame
from sendense.repository.keyed import KeyedStorage
from sendense.repository.session import (
    Attempt,
    CheckpointHead,
    CheckpointPack,
    Inherited,
    MapRun,
    Owner,
)

OWNERS_MAX = 10_000  # every one is a process that died; far above what a job may retry


@dataclass(frozen=True, slots=True)
class Counted:
    """What a disk's writers have stored so far: plain bytes, and what they take."""

    bytes_new: int = 0
    bytes_stored: int = 0


class Checkpoints:
    """The checkpoints of one disk in one attempt, and this process's place among their owners."""

    def __init__(
        self, storage: KeyedStorage, session_id: str, attempt: Attempt, clock: Clock
    ) -> None:
        self._storage = storage
        self._session_id = session_id
        self._disk_key = attempt.disk.key
        self._attempt = session.attempt_digest(storage.keys, attempt)
        self._folder = f"{session.disk_folder(session_id, attempt.disk.key)}{self._attempt}/"
        self._clock = clock
        self._number = 0
        self.owner = 0
        self.inherits: tuple[Inherited, ...] = ()

    def take_over(self, *, discard: bool = False) -> None:
        """Become the next owner, building on what earlier ones left, or on nothing.

        Raises Conflict (kind `session-contended`) where processes start faster than this one.
        """
        while self.owner < OWNERS_MAX:
            inherits = self._inheritable()
            self.owner = self._last_owner() + 1
            self.inherits = () if discard else inherits
            try:
                self._put_owner()
            except Exists:
                continue  # another process was faster; it may have added to the checkpoints
            return
        raise Conflict(
            f"too many processes have written a disk of session {self._session_id}",
            kind="session-contended",
            session_id=self._session_id,
        )

    def list_inherited(self) -> Iterator[tuple[CheckpointHead, list[MapRun]]]:
        """Yield the inherited checkpoints in order. Raises Corrupt or NotFound."""
        for inherited in self.inherits:
            for number in range(1, inherited.last + 1):
                name = self._name(inherited.owner, number)
                head, runs = session.get_checkpoint(self._storage, name)
                if (head.owner, head.number) != (inherited.owner, number):
                    raise format.corrupt(name, "it is another checkpoint")
                self._require_own(head, name)
                yield head, runs

    def put(
        self,
        runs: list[MapRun],
        *,
        resume_index: int,
        counted: Counted,
        packs: tuple[CheckpointPack, ...],
    ) -> None:
        """Store this owner's next checkpoint; durable when this returns."""
        self._number += 1
        head = CheckpointHead(
            session_id=self._session_id,
            disk_key=self._disk_key,
            attempt=self._attempt,
            owner=self.owner,
            number=self._number,
            resume_index=resume_index,
            bytes_new=counted.bytes_new,
            bytes_stored=counted.bytes_stored,
            packs=packs,
        )
        name = self._name(self.owner, self._number)
        body = session.dump_checkpoint(head, runs)
        format.put_frame(self._storage, Frame.CHECKPOINT, name, body)

    def _put_owner(self) -> None:
        owner = Owner(
            session_id=self._session_id,
            disk_key=self._disk_key,
            attempt=self._attempt,
            owner=self.owner,
            inherits=self.inherits,
            at=self._clock.now(),
        )
        name = self._owner_name(self.owner)
        format.put_frame(self._storage, Frame.OWNER, name, record.dump(owner))

    def _last_owner(self) -> int:
        numbers = [
            _number(found.name) for found in self._storage.list_objects(f"{self._folder}owner/")
        ]
        return max(numbers, default=0)

    def _inheritable(self) -> tuple[Inherited, ...]:
        """Return the chain of the last owner: what it inherited, and its own checkpoints."""
        last = self._last_owner()
        if last == 0:
            return ()
        name = self._owner_name(last)
        try:
            body = format.get_frame(self._storage, Frame.OWNER, name)
            owner = record.load(Owner, body, name=name)
            self._require_own(owner, name)
        except (Corrupt, NotFound):
            return ()  # begin anew: a checkpoint saves time, never data
        own = self._last_checkpoint(last)
        return (*owner.inherits, Inherited(last, own)) if own else owner.inherits

    def _require_own(self, found: Owner | CheckpointHead, name: str) -> None:
        """Raise Corrupt for a record of another disk or attempt."""
        if (found.session_id, found.disk_key, found.attempt) != (
            self._session_id,
            self._disk_key,
            self._attempt,
        ):
            raise format.corrupt(name, "it is about another disk or attempt")

    def _last_checkpoint(self, owner: int) -> int:
        """Return the last of an unbroken row of checkpoints."""
        prefix = f"{self._folder}{owner:06d}-"
        last = 0
        for found in self._storage.list_objects(prefix):
            if _number(found.name) != last + 1:
                break
            last += 1
        return last

    def _owner_name(self, owner: int) -> str:
        return f"{self._folder}owner/{owner:06d}"

    def _name(self, owner: int, number: int) -> str:
        return f"{self._folder}{owner:06d}-{number:08d}"


def _number(name: str) -> int:
    """Return the number at the end of a name, 0 where there is none."""
    digits = name.rpartition("/")[2].rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
