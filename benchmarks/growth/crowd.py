"""Several disks at once into one repository: by threads of one process, or by processes.

python -m benchmarks.growth.crowd REPOSITORY SOCKET …    a thread for each; prints JSON figures
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks import contenders, content, ours
from benchmarks.growth.series import Curve, Quantity, Series
from sendense.core import units

DISK_BYTES = 4 * units.GIB


def measure(
    work: Path,
    image: Path,
    *,
    places: int,
    rounds: int,
    threads: Sequence[int],
    processes: Sequence[int],
) -> Iterator[Series]:
    """Yield the bytes a second that full backups of different sparse disks read together."""
    with ExitStack() as stack:
        sockets = []
        for number in range(max(*threads, *processes)):
            disk = work / f"disk-{number}.raw"
            content.make_wide(disk, image, size=DISK_BYTES, places=places, seed=number)
            sockets.append(stack.enter_context(contenders.served(disk)))
        repository = work / "crowd"
        by_threads, by_processes = [], []
        for count in threads:
            taken = [_by_threads(repository, sockets[:count]) for _ in range(rounds)]
            by_threads.append((count, _speed(count, places, taken)))
        for count in processes:
            taken = [_by_processes(repository, sockets[:count]) for _ in range(rounds)]
            by_processes.append((count, _speed(count, places, taken)))
        contenders.remove(repository)
    each = units.format_size(places * content.CHUNK_BYTES)
    for key, title, grows, points in (
        ("disks", "Disks at once, threads of one process", "disks", by_threads),
        ("workers", "Workers at once, a process and a disk each", "workers", by_processes),
    ):
        yield Series(
            key,
            f"{title}: {each} each",
            grows,
            Quantity.COUNT,
            Quantity.BYTES_PER_SECOND,
            (Curve("read by all together", tuple(points)),),
            is_log=False,
        )


def _speed(count: int, places: int, seconds: Sequence[float]) -> float:
    return count * places * content.CHUNK_BYTES / statistics.median(seconds)


def _begin(repository: Path) -> None:
    """Make the repository before, or all would try to be the one that does."""
    contenders.remove(repository)
    ours.create_repository(repository).close()


def _by_threads(repository: Path, sockets: Sequence[Path]) -> float:
    _begin(repository)
    command = [sys.executable, "-m", "benchmarks.growth.crowd", str(repository)]
    command += [str(socket) for socket in sockets]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["seconds"])


def _by_processes(repository: Path, sockets: Sequence[Path]) -> float:
    """Return the seconds from the first one's beginning to the last one's end."""
    _begin(repository)
    command = [sys.executable, "-m", "benchmarks.ours", "full", "--repository", str(repository)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, "--name", f"vm-{number}", "--socket", str(socket)],
                    stdout=subprocess.PIPE,
                )
            )
            for number, socket in enumerate(sockets)
        ]
        told = [json.loads(one.communicate()[0]) for one in running]
    ended = max(one["began"] + one["seconds"] for one in told)
    return float(ended - min(one["began"] for one in told))


def main() -> None:
    """Back up each disk in a thread of its own, as a worker with as many jobs does."""
    repository, *sockets = (Path(path) for path in sys.argv[1:])
    began = time.perf_counter()
    with ThreadPoolExecutor(len(sockets)) as pool:
        list(pool.map(lambda one: _back_up(repository, *one), enumerate(sockets)))
    print(json.dumps({"seconds": time.perf_counter() - began}))


def _back_up(repository: Path, number: int, socket: Path) -> None:
    view = ours.open_view(socket, None)
    ours.back_up(view, repository, name=f"vm-{number}", parent=None)


if __name__ == "__main__":
    main()
