"""Worker processes of one world, on one machine or on several, and what they did."""

import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from sendense.durable import lease_terms
from tests.workflow.world import Setting, World

ROOT = Path(__file__).parent.parent.parent
STOP_SECONDS_MAX = 60.0
NOTE_SECONDS = 0.2  # from the end of a step's work to its line in the book, on a busy machine


@dataclass(frozen=True)
class Event:
    """A step that began or ended, as the worker wrote it down."""

    at: float
    worker_id: str
    what: str
    workflow_id: str
    step: str


@dataclass
class Member:
    """A worker process; `stopped_at` is when it was killed or frozen, `woken_at` when it woke."""

    setting: Setting
    process: subprocess.Popen[bytes]
    hired_at: float
    stopped_at: float | None = None
    woken_at: float | None = None

    @property
    def id(self) -> str:
        return self.setting.worker_id

    def kill(self) -> None:
        self.stopped_at = lease_terms.awake_seconds()
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        self.stopped_at = lease_terms.awake_seconds()

    def thaw(self) -> None:
        self.woken_at = lease_terms.awake_seconds()
        self.process.send_signal(signal.SIGCONT)

    @property
    def is_frozen(self) -> bool:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        return False

    def wait(self) -> int:
        return self.process.wait(timeout=STOP_SECONDS_MAX)


@dataclass
class Crew:
    """The workers of a world."""

    world: World
    base: Setting
    members: list[Member] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.world.settings.data_dir.parent

    def hire(self, **given: object) -> Member:
        """Start a worker that differs from the crew's setting in what is given."""
        worker_id = f"worker-{len(self.members) + 1}"
        setting = replace(self.base, **{"worker_id": worker_id, **given})  # type: ignore[arg-type]
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.workflow.worker_process",
                str(self.folder),
                json.dumps(asdict(setting)),
            ],
            cwd=ROOT,
        )
        member = Member(setting, process, hired_at=lease_terms.awake_seconds())
        self.members.append(member)
        return member

    def wait_ready(self) -> None:
        """Wait until every worker that was hired, and runs, takes jobs."""
        running = {one.id for one in self.members if one.process.poll() is None}
        self.world.until(lambda: running <= self.list_ready())

    def slack_seconds(self) -> float:
        """Return what to forgive this machine now: a few times what a worker took to start."""
        hired = {one.id: one.hired_at for one in self.members}
        ready = [(words[1], float(words[0])) for words in self._read() if "ready" in words]
        return 5.0 + 4.0 * max((at - hired[one] for one, at in ready), default=0.0)

    def list_ready(self) -> set[str]:
        """Return the ids of the workers that took jobs at some time: before they hold no lease."""
        return {words[1] for words in self._read() if "ready" in words}

    def _read(self) -> list[list[str]]:
        path = self.folder / "events"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def events(self) -> list[Event]:
        """Return the steps that began and ended."""
        return [Event(float(at), *rest) for at, *rest in self._read() if len(rest) == 4]

    def snapshots(self) -> Counter[tuple[str, str]]:
        """Return how often each snapshot was taken and removed."""
        return Counter((one[2], one[3]) for one in self._read() if one[1] == "lab")

    @property
    def someone_froze(self) -> bool:
        """Whether a worker froze where it was told to."""
        return any("frozen" in words for words in self._read())

    def find_overlaps(self) -> list[str]:
        """Return where two workers ran one step of one workflow at the same time.

        A worker that was stopped, or that ended itself, did nothing from then on.
        """
        stopped = {words[1]: float(words[0]) for words in self._read() if "fenced" in words}
        for one in self.members:
            if one.stopped_at is not None:
                stopped[one.id] = one.stopped_at
        running: dict[tuple[str, str], str] = {}
        found = []
        for event in sorted(self.events(), key=lambda one: one.at):
            key = (event.workflow_id, event.step)
            owner = running.get(key)
            if event.what == "ends":
                if owner == event.worker_id:
                    del running[key]
                continue
            if owner not in {None, event.worker_id} and event.at < stopped.get(
                owner or "", float("inf")
            ):
                found.append(f"{key}: {owner} and {event.worker_id} at {event.at}")
            running[key] = event.worker_id
        return found

    def find_deeds_of_the_woken(self) -> list[Event]:
        """Return what frozen workers did after they woke.

        A step that had done its work may note its end before anything can end its process; the
        commit may not, for nothing else tells when it was made.
        """
        woken = {one.id: one.woken_at for one in self.members if one.woken_at is not None}
        return [
            event
            for event in self.events()
            if event.worker_id in woken
            and event.at > woken[event.worker_id]
            and not (
                event.what == "ends"
                and event.step != "commit"
                and event.at <= woken[event.worker_id] + NOTE_SECONDS
            )
        ]

    def latency(self, member: Member) -> float | None:
        """Return after how long others went on with what a stopped worker did; None: nothing."""
        assert member.stopped_at is not None
        left: dict[str, float] = {}
        gone_on: list[float] = []
        for event in sorted(self.events(), key=lambda one: one.at):
            if event.worker_id == member.id and event.at <= member.stopped_at:
                if event.what == "begins":
                    left[event.workflow_id] = event.at
                else:
                    left.pop(event.workflow_id, None)
            elif event.at > member.stopped_at and left.pop(event.workflow_id, None) is not None:
                gone_on.append(event.at - member.stopped_at)
        return max(gone_on, default=None)

    def dismiss(self) -> None:
        for member in self.members:
            with contextlib.suppress(ProcessLookupError):
                member.process.send_signal(signal.SIGCONT)
                member.process.kill()
            member.process.wait(timeout=STOP_SECONDS_MAX)


@contextlib.contextmanager
def gathered(world: World, base: Setting) -> Iterator[Crew]:
    """Give a crew without members; all end with the block."""
    crew = Crew(world, base)
    try:
        yield crew
    finally:
        crew.dismiss()
