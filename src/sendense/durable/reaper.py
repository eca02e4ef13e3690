"""Ends workers of this machine that exist and do not run: stopped by a signal, or frozen.

A frozen worker may hold SQLite's write lock, for the catalog or for the engine's tables. Then no
other worker could renew its lease, and all would end themselves because of one. So the reaper needs
no database: it looks at the kernel's own counts, and is done long before a healthy worker's lease
is in danger.

It counts its own looks and not seconds: where the whole machine was paused, it was paused too.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sendense.durable import lease_terms, presence, process
from sendense.durable.presence import Presence
from sendense.durable.process import Mark

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    """A worker as it was when it last ran, and how many looks have seen it so."""

    wakes: int
    looked_at: float
    looks: int = 0


class Reaper:
    """Looks at the workers of a folder, again and again; not safe for several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, _Seen] = {}

    @contextmanager
    def running(self, *, lease_seconds: float) -> Iterator[None]:
        """Look from a thread while the block runs.

        A process begins with this, before it opens any database: what it would wait for may be held
        by a frozen worker that nobody else is there to end.
        """
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(lease_seconds / lease_terms.PULSES_PER_LEASE):
                self.look()

        thread = threading.Thread(target=run, name="reaper", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def look(self) -> tuple[str, ...]:
        """Look once; return the ids of the workers that were ended."""
        ended = []
        present = list(self._folder.glob(f"*{presence.SUFFIX}"))
        for path in present:
            # What cannot be looked at now is looked at again soon; whoever calls must go on.
            with contextlib.suppress(OSError):
                held, mark = presence.look(path)
                if held is Presence.HELD and mark is not None and self._is_frozen(path, mark):
                    self._end(path, mark)
                    ended.append(path.stem)
        for path in set(self._seen) - set(present):
            del self._seen[path]
        return tuple(ended)

    def _end(self, path: Path, mark: Mark) -> None:
        del self._seen[path]
        outcome = "was ended" if process.end(mark, path) else "cannot be ended"
        _log.error("worker %s (process %d) does not run and %s", path.stem, mark.pid, outcome)

    def _is_frozen(self, path: Path, mark: Mark) -> bool:
        wakes = process.count_wakes(mark)
        now = lease_terms.awake_seconds()
        seen = self._seen.get(path)
        if wakes is None or seen is None or seen.wakes != wakes:
            self._seen[path] = _Seen(-1 if wakes is None else wakes, now)
            return False
        if now - seen.looked_at < mark.wake_seconds:
            return False  # we look more often than it wakes: its lease may be a longer one
        seen.looked_at = now
        seen.looks += 1
        return seen.looks >= lease_terms.FROZEN_LOOKS
