"""`./dev bench --catalog`: how long the API's lists take with 100,000 backups.

Each question goes through the function that answers the HTTP request, in one read transaction,
up to the text of the answer. Over HTTP a request adds 2 to 4 ms.
"""

import argparse
import contextlib
import functools
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy.orm import Session

from benchmarks import estate
from benchmarks.estate import REPOSITORIES, Estate
from sendense.cli import serve
from sendense.db import schema
from sendense.db.catalog import Catalog
from sendense.hub.backups import service as backups
from sendense.hub.backups.schemas import BackupFilter, BackupType
from sendense.hub.jobs import queries as job_queries
from sendense.hub.jobs import service as jobs
from sendense.hub.jobs.schemas import JobFilter, JobKind, JobList, JobStatus
from sendense.hub.vms import service as vms
from sendense.hub.vms.schemas import VmFilter

ROUNDS = 40
LIMIT_SECONDS = 0.050  # at the 95th percentile


@dataclass(frozen=True)
class Question:
    """One request, and what answers it."""

    name: str
    ask: Callable[[Session], BaseModel]


@dataclass(frozen=True)
class Timing:
    """How long a question took, in seconds, less what others on the machine took meanwhile.

    Attributes:
        p95: 19 of 20 requests stay below.
    """

    median: float
    p95: float


def list_questions(known: Estate) -> list[Question]:
    """Return what people and programs ask a catalog that is an estate."""
    middle = known.began + (known.ended - known.began) / 2
    week = {"created_after": middle, "created_before": middle + timedelta(days=7)}
    last = max(0, len(known.backup_ids) - 100)
    filters = {
        "no filter": BackupFilter(),
        "vm_name": BackupFilter(vm_name=known.vm_name),
        "vm_id": BackupFilter(vm_id=known.vm_id),
        "vm_id of nobody": BackupFilter(vm_id="vm-unknown"),
        "repository_id": BackupFilter(repository_id="repo-a"),
        "backup_type incremental": BackupFilter(backup_type=BackupType.INCREMENTAL),
        "backup_type full": BackupFilter(backup_type=BackupType.FULL),
        "status completed": BackupFilter(status=JobStatus.COMPLETED),
        "status failed": BackupFilter(status=JobStatus.FAILED),
        "status running": BackupFilter(status=JobStatus.RUNNING),
        "tag env=prod (half of all)": BackupFilter(tag=["env=prod"]),
        "tag policy (all)": BackupFilter(tag=["policy"]),
        "tag ticket (few)": BackupFilter(tag=["ticket"]),
        "tag of nobody": BackupFilter(tag=["nobody=has"]),
        "two tags": BackupFilter(tag=["env=prod", "policy=monthly"]),
        "a week": BackupFilter.model_validate(week),
        "half of the time": BackupFilter(created_after=middle),
        "repository, status, type": BackupFilter(
            repository_id="repo-b", status=JobStatus.COMPLETED, backup_type=BackupType.FULL
        ),
        "tag, status, half of the time": BackupFilter(
            tag=["env=test"], status=JobStatus.FAILED, created_after=middle
        ),
        "VM, status, a week": BackupFilter.model_validate(
            {"vm_id": known.vm_id, "status": "completed", **week}
        ),
        "deleted": BackupFilter(deleted=True),
        "no filter, last page": BackupFilter(offset=last),
        "status completed, deep": BackupFilter(status=JobStatus.COMPLETED, offset=last * 9 // 10),
        "tag env=prod, deep": BackupFilter(tag=["env=prod"], offset=last // 3),
    }
    return [
        *(
            Question(f"backups: {name}", functools.partial(_list, wanted))
            for name, wanted in filters.items()
        ),
        *_list_others(known),
    ]


def _list_others(known: Estate) -> list[Question]:
    """Return the questions about single backups, chains, jobs and VMs."""
    last = max(0, len(known.backup_ids) - 100)
    backup_id = known.backup_ids[len(known.backup_ids) // 2]
    return [
        Question("backup", lambda session: backups.get_backup(session, backup_id)),
        Question("chain", lambda session: _get_chain(session, known.vm_id)),
        Question("jobs", lambda session: _jobs(session, JobFilter())),
        Question("jobs: kind", lambda session: _jobs(session, JobFilter(kind=JobKind.DISCOVERY))),
        Question("jobs, last page", lambda session: _jobs(session, JobFilter(offset=last))),
        Question("vms", lambda session: vms.list_vms(session, VmFilter(limit=200))),
        Question("vms: protected", lambda session: vms.list_vms(session, VmFilter(protected=True))),
    ]


def _list(wanted: BackupFilter, session: Session) -> BaseModel:
    return backups.list_backups(session, wanted)


def _jobs(session: Session, wanted: JobFilter) -> BaseModel:
    rows, total = job_queries.list_jobs(session, wanted)
    return JobList(jobs=[jobs.show(row) for row in rows], total=total)


def _get_chain(session: Session, vm_id: str) -> BaseModel:
    return backups.get_chain(session, vm_id, disk=0, repository_id=REPOSITORIES[1])


@contextlib.contextmanager
def as_a_hub_runs() -> Iterator[None]:
    """Leave out what a hub does not have: collections that walk the heap, measuring of coverage."""
    tracer, threshold = sys.gettrace(), gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(serve.GARBAGE_OBJECTS)
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        gc.set_threshold(*threshold)
        gc.unfreeze()


@contextlib.contextmanager
def built(backups: int, *, url: str | None = None) -> Iterator[tuple[Catalog, Estate]]:
    """Give a catalog of so many backups, in a fresh SQLite file or an empty database."""
    with tempfile.TemporaryDirectory(prefix="sendense-bench-") as folder:
        catalog = Catalog(url or f"sqlite:///{folder}/catalog.sqlite")
        try:
            schema.migrate(catalog)
            yield catalog, estate.build(catalog, backups=backups)
        finally:
            catalog.close()


def measure(catalog: Catalog, question: Question, *, rounds: int = ROUNDS) -> Timing:
    """Ask again and again; the first answer, which fills caches, does not count."""
    taken = sorted(_ask(catalog, question) for _ in range(rounds + 1))[:rounds]
    return Timing(statistics.median(taken), statistics.quantiles(taken, n=20)[-1])


def _ask(catalog: Catalog, question: Question) -> float:
    with catalog.read() as session:
        waiting = _list_waits(session)
        waited = _sum_waits(waiting)
        began = time.perf_counter()
        question.ask(session).model_dump_json()
        wall = time.perf_counter() - began
        return wall - (_sum_waits(waiting) - waited)


def _list_waits(session: Session) -> list[Path]:
    """Return where Linux counts how long those who answer were ready and another ran."""
    connection = session.connection()
    found = [Path("/proc/thread-self/schedstat")]
    if connection.dialect.name == "postgresql":
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        found.append(Path(f"/proc/{pid}/schedstat"))
    elif connection.dialect.name in {"mysql", "mariadb"}:
        question = "SELECT tid FROM information_schema.processlist WHERE id = connection_id()"
        thread = connection.exec_driver_sql(question).scalar_one()
        found.append(Path(f"/proc/{thread}/schedstat"))
    return found


def _sum_waits(paths: Sequence[Path]) -> float:
    nanoseconds = 0
    for path in paths:
        with contextlib.suppress(OSError):  # a thread that has ended, or no Linux
            nanoseconds += int(path.read_text().split()[1])
    return nanoseconds / 1e9


def main(arguments: Sequence[str]) -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(prog="./dev bench --catalog", description=__doc__)
    parser.add_argument("--url", help="an empty database instead of a fresh SQLite file")
    parser.add_argument("--backups", type=int, default=estate.BACKUPS)
    parser.add_argument("--only", default="", help="questions with this in their name")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    with built(given.backups, url=given.url) as (catalog, known), as_a_hub_runs():
        print(f"{given.backups:,} backups written in {time.perf_counter() - began:.1f} s\n")
        print_table(catalog, known, only=given.only)


def print_table(catalog: Catalog, known: Estate, *, only: str = "") -> None:
    """Print one line for each question, in milliseconds."""
    print(f"{catalog.engine.dialect.name + ', milliseconds':45}    p50    p95")
    for question in list_questions(known):
        if only in question.name:
            timing = measure(catalog, question)
            slow = "  *" if timing.p95 > LIMIT_SECONDS else ""
            print(f"{question.name:45} {timing.median * 1e3:6.1f} {timing.p95 * 1e3:6.1f}{slow}")
