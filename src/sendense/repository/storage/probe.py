"""Whether a store can hold a repository: tried out, since documentation and stores differ.

Everything rests on put-if-absent: of many callers at once exactly one succeeds. A store that looks
and then writes passes any trial by one caller alone, so many try at once, many times.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sendense.core.errors import Conflict, Exists, NotFound
from sendense.repository.storage.base import Storage

FOLDER = "probe"
WRITERS = 16
# Versity's gateway 1.7.0 looks first: 40 of 40 trials found it out, by five failures in 8 to 44
# rounds. With bodies of two bytes, look and write lie closer together; one trial of five passed.
ROUNDS = 50
BODY_BYTES = 4 << 10
MEETING_SECONDS_MAX = 600.0  # for the slowest writer to come back; a request's bound is as long
FAILURES_TOLD_MAX = 5


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a trial found.

    Attributes:
        rounds: how many were run.
        failures: what was wrong, in words; none for a store that is fit.
        seconds: how long the trial took.
    """

    rounds: int
    writers: int
    failures: tuple[str, ...]
    seconds: float

    @property
    def fit(self) -> bool:
        """Whether nothing was wrong."""
        return not self.failures


def probe(storage: Storage, token: str) -> Abilities:
    """Try a storage out, and remove what that put; stops after a few failures.

    Makes about a thousand requests. Raises what the storage raises.

    Args:
        storage: where a repository is to be made.
        token: names the trial; another one must not use it.
    """
    began = time.monotonic()
    failures: list[str] = []
    folder = f"{FOLDER}/{token}/"
    done = 0
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="probe") as pool:
        try:
            for number in range(ROUNDS):
                failures += _fight(storage, pool, f"{folder}{number:04}")
                done += 1
                if len(failures) >= FAILURES_TOLD_MAX:
                    break
            failures += _compare_listing(storage, folder, done)
        finally:
            list(pool.map(_remover(storage, folder), range(ROUNDS)))
    failures += _compare_listing(storage, folder, 0)
    return Abilities(done, WRITERS, tuple(failures), round(time.monotonic() - began, 1))


def require_fit(found: Abilities) -> None:
    """Raise Conflict, kind `storage-unfit`, for a store that failed its trial."""
    if not found.fit:
        raise Conflict(
            f"the store cannot be trusted with a repository: {found.failures[0]}",
            kind="storage-unfit",
            hint="use another store, or a newer version of it; whoever accepts it all the same must"
            " never let two processes write to it at once",
            failures=list(found.failures[:FAILURES_TOLD_MAX]),
        )


def _fight(storage: Storage, pool: ThreadPoolExecutor, name: str) -> list[str]:
    """Let writers put one name at the same time; return what went wrong."""
    barrier = threading.Barrier(WRITERS, timeout=MEETING_SECONDS_MAX)
    results = list(pool.map(_writer(storage, name, barrier), range(WRITERS)))
    winners = [number for number, won in enumerate(results) if won]
    if len(winners) != 1:
        return [f"of {WRITERS} writers of one name {len(winners)} succeeded, not one"]
    return _compare(storage, name, winners)


def _writer(storage: Storage, name: str, barrier: threading.Barrier) -> Callable[[int], bool]:
    def put(number: int) -> bool:
        barrier.wait()
        try:
            storage.put_if_absent(name, _body(number))
        except Exists:
            return False
        return True

    return put


def _remover(storage: Storage, folder: str) -> Callable[[int], None]:
    def remove(number: int) -> None:
        with contextlib.suppress(NotFound):
            storage.delete(f"{folder}{number:04}")

    return remove


def _body(number: int) -> bytes:
    return b"%08d" % number * (BODY_BYTES // 8)


def _compare(storage: Storage, name: str, winners: Sequence[int]) -> list[str]:
    try:
        found = storage.get(name)
    except NotFound:
        return ["what was put cannot be read at once"]
    return [] if found == _body(winners[0]) else ["what is read is not what the winner put"]


def _compare_listing(storage: Storage, folder: str, wanted: int) -> list[str]:
    found = sum(1 for _ in storage.list_objects(folder))
    if found == wanted:
        return []
    return [f"a listing shows {found} objects where {wanted} are"]
