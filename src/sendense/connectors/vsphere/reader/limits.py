"""How many disks and sessions are open at once, on a host and on a vCenter.

A slot is a locked file. All threads and processes of one machine that use the same folder share the
slots, and the kernel frees them with their holder, however that ends. Workers on other machines
know nothing of each other: where several of them read from one vCenter, divide the limits.
"""

import contextlib
import fcntl
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sendense.core.clock import Clock
from sendense.core.errors import Denied, Unavailable

DISKS_PER_HOST = 4  # ESXi gives all NFC clients together 48 MB of buffers by default
SESSIONS_PER_VCENTER = 52  # VMware's documented limit of NFC connections through one vCenter
WAIT_SECONDS_MAX = 4 * 3600.0  # a full read of a large disk in front; longer is worth an error
_POLL_SECONDS = (0.05, 0.5)  # drawn anew each time, so that many waiting do not march in step


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` of something; `count` of them are wanted."""

    name: str
    most: int
    count: int = 1

    def __post_init__(self) -> None:
        assert self.count >= 1, f"{self.count} slots of {self.name}"


@dataclass(frozen=True, slots=True)
class Slots:
    """The limits that the processes of this machine share by a folder."""

    folder: Path
    clock: Clock
    chance: random.Random

    @contextlib.contextmanager
    def hold(
        self, limits: Sequence[Limit], *, wait_seconds_max: float = WAIT_SECONDS_MAX
    ) -> Iterator[None]:
        """Hold slots of all limits, or none while waiting: so two can never wait for each other.

        Who wants more than there are gets all there are. Raises Unavailable, kind
        `vsphere-slots-taken`, where they did not come free in time.
        """
        self._prepare()
        deadline = self.clock.monotonic() + wait_seconds_max
        while (held := self._take(limits)) is None:
            if self.clock.monotonic() >= deadline:
                raise _taken(limits, wait_seconds_max)
            self.clock.sleep(self.chance.uniform(*_POLL_SECONDS))
        with held:
            yield

    def _take(self, limits: Sequence[Limit]) -> contextlib.ExitStack | None:
        with contextlib.ExitStack() as stack:
            for limit in limits:
                if not self._take_some(limit, stack):
                    return None
            return stack.pop_all()
        raise AssertionError("the stack keeps no error")

    def _take_some(self, limit: Limit, stack: contextlib.ExitStack) -> bool:
        """Lock enough files of a limit; those it locked belong to the stack even in vain."""
        name = hashlib.sha256(limit.name.encode()).hexdigest()[:32]
        missing = min(limit.count, max(1, limit.most))
        for number in range(max(1, limit.most)):
            descriptor = _lock(self.folder / f"{name}-{number}.slot")
            if descriptor is None:
                continue
            stack.callback(os.close, descriptor)
            missing -= 1
            if not missing:
                return True
        return False

    def _prepare(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.is_symlink() or self.folder.lstat().st_uid != os.geteuid():
            raise Denied(
                f"the folder {self.folder} belongs to somebody else",
                kind="scratch-folder",
                hint="choose another one, or remove it",
            )


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None where somebody else does.

    The files stay: one removed while somebody waits for it would be two locks.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _taken(limits: Sequence[Limit], waited_seconds: float) -> Unavailable:
    names = " and ".join(f"{limit.name} (at most {limit.most})" for limit in limits)
    return Unavailable(
        f"no slot of {names} came free within {waited_seconds:.0f} seconds",
        kind="vsphere-slots-taken",
        hint="let fewer jobs run at once, or raise the source's limits if the hosts bear it",
    )


def list_delays(
    attempts: int, chance: random.Random, *, first_seconds: float = 2.0, most_seconds: float = 60.0
) -> Iterator[float]:
    """Yield the pauses between attempts: doubled each time, and each drawn from its upper half.

    So those refused at one moment do not all come back at another.
    """
    for number in range(attempts - 1):
        bound = min(most_seconds, first_seconds * 2**number)
        yield chance.uniform(bound / 2, bound)
