"""`./dev bench --profile`: where the processor's time of a full backup goes, beside its limit's.

Linux's perf looks at every core 1,000 times a second and tells what it is at: which library, and in
the kernel which call it came by. What cannot be told apart this way is one row: chunks are hashed
when they are read and when their pack is opened again, and packs are to name them.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contenders, content, scale
from benchmarks.scale import Scale

LOOKS_PER_SECOND = 1000
OURS = "benchmarks.ours"
LIMIT = "benchmarks.limit"

COMPRESSING = "compressing (zstd)"
DECOMPRESSING = "decompressing (zstd)"
HASHING = "hashing (BLAKE3)"
CIPHER = "sealing and opening (AES-256-GCM)"
RECEIVING = "receiving from the source"
WRITING = "writing and syncing"
MEMORY = "fresh memory, copies"
WAKING = "waking threads"
INTERPRETER = "interpreter"
OTHER = "other"
SOURCE = "qemu-nbd"
REST = "everybody else"
IDLE = "nothing to do"
KINDS = (
    COMPRESSING, DECOMPRESSING, HASHING, CIPHER, RECEIVING, WRITING, MEMORY, WAKING, INTERPRETER,
    OTHER, SOURCE, REST, IDLE,
)  # fmt: skip

PROGRAMS = {"swapper": IDLE, "qemu-nbd": SOURCE}
DECODES = re.compile(r"decompress|DTable|buildFSETable|readNCount|readStats|decode|getFrameHeader")
LIBRARIES = {"blake3": HASHING, "_rust": CIPHER, "libpython": INTERPRETER, "libc.so": MEMORY}
CALLS = {
    "recv": RECEIVING,
    "page_fault": MEMORY,
    "munmap": MEMORY,
    "madvise": MEMORY,
    "futex": WAKING,
    "pwrite": WRITING,
    "fsync": WRITING,
}


@dataclass(frozen=True)
class Look:
    """What a core was at: the program, and the calls it was in, the innermost first."""

    at: float
    program: str
    frames: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What the time goes to."""
        if not self.program.startswith("python"):
            return PROGRAMS.get(self.program, REST)
        inner = self.frames[0] if self.frames else ""
        if "kernel" in inner:
            found = (kind for frame in self.frames for call, kind in CALLS.items() if call in frame)
            return next(found, OTHER)
        if "zstandard" in inner:
            return DECOMPRESSING if DECODES.search(inner) else COMPRESSING
        return next((kind for name, kind in LIBRARIES.items() if name in inner), OTHER)


def main(measured: Scale) -> None:
    """Measure both, one after the other, and print a table."""
    if shutil.which("perf") is None:
        raise SystemExit("perf is missing: install Debian's linux-perf and try again")
    image = content.make_image(scale.CACHE, content_bytes=measured.content_bytes)
    with scale.work_folder() as folder, contenders.served(image) as socket:
        place = ["--repository", str(folder / "repository"), "--socket", str(socket)]
        ours = _profile(folder, [OURS, "full", "--name", "first", *place])
        limit = _profile(folder, [LIMIT, "compress", str(socket)])
    print("\n".join(to_lines(ours, limit)))


def to_lines(ours: Counter[str], limit: Counter[str]) -> list[str]:
    """Return seconds of cores for each kind of work, as Markdown."""
    lines = ["| seconds of all cores | ours | the limit |", "| --- | --- | --- |"]
    for kind in KINDS:
        told = (f"{found[kind] / LOOKS_PER_SECOND:.2f}" for found in (ours, limit))
        lines.append(f"| {kind} | {' | '.join(told)} |")
    return lines


def _profile(folder: Path, arguments: list[str]) -> Counter[str]:
    """Return how many looks met each kind of work while the command was timed."""
    record = folder / "perf.data"
    command = [
        *("perf", "record", "--quiet", "--all-cpus", "--call-graph", "fp"),
        *("--freq", str(LOOKS_PER_SECOND), "--clockid", "CLOCK_MONOTONIC"),
        *("--output", str(record), "--", sys.executable, "-m", *arguments),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    script = ["perf", "script", "--input", str(record), "--fields", "comm,time,ip,sym,dso"]
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as printed:
        assert printed.stdout is not None
        begin, end = told["began"], told["began"] + told["seconds"]
        return Counter(look.kind for look in parse(printed.stdout) if begin <= look.at <= end)


def parse(lines: Iterable[str]) -> Iterator[Look]:
    """Yield the looks that `perf script` printed: a head, its frames, an empty line."""
    head: tuple[str, float] | None = None
    frames: list[str] = []
    for line in lines:
        if not line.strip():
            if head is not None:
                yield Look(head[1], head[0], tuple(frames))
            head, frames = None, []
        elif head is None:
            program, _, at = line.rstrip().rstrip(":").rpartition(" ")
            head = program.strip(), float(at)
        else:
            frames.append(line.strip())
    if head is not None:
        yield Look(head[1], head[0], tuple(frames))
