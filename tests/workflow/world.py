"""A hub without HTTP and a worker in this process, on SQLite, a local repository and a lab."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sendense import app
from sendense.connectors.base import Source
from sendense.core.clock import SystemClock
from sendense.core.errors import SendenseError
from sendense.db.catalog import Catalog
from sendense.db.tables import BackupRow, ChainRow, JobRow, RepositoryRow, RestoreRow, SourceRow
from sendense.durable import client, lease
from sendense.durable.client import EngineClient
from sendense.durable.engine import Engine, EngineSettings
from sendense.durable.sweep import Sweep
from sendense.hub.backups import service as backups
from sendense.hub.backups.schemas import StartBackup
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as job_queries
from sendense.hub.jobs import service as jobs
from sendense.hub.repositories import service as repositories
from sendense.hub.repositories.schemas import CreateRepository
from sendense.hub.restores import service as restores
from sendense.hub.restores.schemas import StartRestore
from sendense.hub.sources import service as sources
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.settings import Settings
from sendense.workflows.housekeeping import Housekeeping
from sendense.workflows.owner import WorkerOwner
from sendense.workflows.registry import WORKFLOWS
from sendense.workflows.worker import Worker
from tests.workflow.lab import Lab

WAIT_SECONDS_MAX = 30.0
POLL_SECONDS = 0.02


class Spy(WorkerOwner):
    """The real owner; it also fails steps and calls the test where the test asks for it.

    Pauses between attempts are not waited for.
    """

    def __init__(self, catalog: Catalog, held: lease.Lease) -> None:
        super().__init__(catalog, held, SystemClock())
        self._local = threading.local()
        self.faults: dict[str, list[SendenseError]] = {}
        self.calls: dict[str, Callable[[], None]] = {}
        self.steps: list[str] = []

    def step_started(self, workflow_id: str, step_name: str) -> None:
        self._local.step = step_name
        self.steps.append(step_name)
        call = self.calls.pop(step_name, None)
        if call is not None:
            call()
        super().step_started(workflow_id, step_name)

    def check_lease(self) -> None:
        super().check_lease()
        left = self.faults.get(getattr(self._local, "step", ""))
        if left:
            raise left.pop(0)

    def pause(self, job_id: str, seconds: float, *, cancellable: bool) -> None:
        super().pause(job_id, min(seconds, 0.0), cancellable=cancellable)


@dataclass
class World:
    """Everything, with a source `lab` and a repository `local` registered."""

    settings: Settings
    catalog: Catalog
    client: EngineClient
    hub: Hub
    lab: Lab
    spy: Spy
    worker: Worker
    stop: threading.Event = field(default_factory=threading.Event)
    source_id: str = ""
    repository_id: str = ""

    def discover(self) -> JobRow:
        with self.catalog.write() as session:
            job_id = sources.start_discovery(session, self.hub, self.source_id).job_id
        return self.wait(self.start(job_id))

    def start_backup(self, vm: str = "web", **fields: Any) -> tuple[str, str]:
        wanted = StartBackup.model_validate(
            {"vm_name": vm, "repository_id": self.repository_id, **fields}
        )
        with self.catalog.write() as session:
            accepted = backups.start(session, self.hub, wanted)
        return accepted.backup_id, self.start(accepted.job_id)

    def back_up(self, vm: str = "web", **fields: Any) -> BackupRow:
        backup_id, job_id = self.start_backup(vm, **fields)
        self.wait(job_id)
        return self.backup(backup_id)

    def start_restore(self, backup_id: str, name: str, **fields: Any) -> tuple[str, str]:
        target = {"type": "file", "path": str(self.target(name)), "format": "raw"}
        wanted = StartRestore.model_validate({"backup_id": backup_id, "target": target, **fields})
        with self.catalog.write() as session:
            accepted = restores.start(session, self.hub, wanted)
        return accepted.restore_id, self.start(accepted.job_id)

    def restore(self, backup_id: str, disk: int = 0) -> bytes:
        name = f"{backup_id}-{disk}.raw"
        _, job_id = self.start_restore(backup_id, name, disk_id=disk)
        job = self.wait(job_id)
        assert job.status == "completed", job.error
        return self.target(name).read_bytes()

    def target(self, name: str) -> Path:
        return self.settings.data_dir / "restores" / name

    def start(self, job_id: str) -> str:
        jobs.enqueue(self.hub, job_id)
        return job_id

    def cancel(self, job_id: str) -> None:
        with self.catalog.write() as session:
            job_queries.request_cancel(session, job_id, now=self.hub.clock.now())

    def wait(self, job_id: str) -> JobRow:
        self.until(lambda: self.job(job_id).finished_at is not None, lambda: vars(self.job(job_id)))
        return self.job(job_id)

    def until(
        self, condition: Callable[[], bool], tell: Callable[[], object] = lambda: "never"
    ) -> None:
        waiting = threading.Event()
        for _ in range(int(WAIT_SECONDS_MAX / POLL_SECONDS)):
            if condition():
                return
            waiting.wait(POLL_SECONDS)
        raise AssertionError(f"it did not happen: {tell()}")

    def job(self, job_id: str) -> JobRow:
        with self.catalog.read() as session:
            return job_queries.get_job(session, job_id)

    def backup(self, backup_id: str) -> BackupRow:
        with self.catalog.read() as session:
            row = session.get(BackupRow, backup_id)
        assert row is not None
        return row

    def restore_row(self, restore_id: str) -> RestoreRow:
        with self.catalog.read() as session:
            row = session.get(RestoreRow, restore_id)
        assert row is not None
        return row

    def chains(self) -> list[ChainRow]:
        with self.catalog.read() as session:
            return list(session.query(ChainRow).all())

    @contextlib.contextmanager
    def repository(self) -> Iterator[Repository]:
        with self.catalog.read() as session:
            row = session.get(RepositoryRow, self.repository_id)
        assert row is not None
        with repositories.open_checked(self.hub, row) as storage:
            yield Repository.open(
                storage, clock=self.hub.clock, ids=self.hub.ids, reserve=NO_RESERVE
            )

    def outcome(self, job_id: str) -> str | None:
        with self.repository() as repository:
            outcome = repository.find_outcome(job_id)
        return outcome.state if outcome is not None else None

    def open_sessions(self) -> list[str]:
        with self.repository() as repository:
            return [one.name for one in repository.storage.list_objects("sessions/")]


def build(folder: Path, *, worker_id: str, lease_seconds: float = 60.0) -> World:
    """Make or open a world in a folder; its worker does not run yet."""
    settings = Settings(data_dir=folder / "data", lease_seconds=lease_seconds, no_auth=True)
    catalog = app.open_catalog(settings, migrate=True)
    client.migrate(settings.jobs_url)
    engine = EngineClient(settings.jobs_url)
    lab = Lab(folder / "lab")
    (lab.folder / "vms").mkdir(parents=True, exist_ok=True)
    hub = replace(app.create_hub(settings, catalog, engine), open_source=lambda _kind, _config: lab)
    held = lease.Lease(
        catalog,
        worker_id=worker_id,
        lease_seconds=settings.lease_seconds,
        lock_folder=settings.lock_dir,
    )

    @contextlib.contextmanager
    def open_source(_row: SourceRow) -> Iterator[Source]:
        yield lab

    context = replace(app.create_context(settings, catalog, engine, held), open_source=open_source)
    spy = Spy(catalog, held)
    worker = Worker(
        catalog=catalog,
        client=engine,
        lease=held,
        engine=Engine(
            EngineSettings(settings.jobs_url, worker_id, poll_seconds=0.05),
            WORKFLOWS,
            context,
            spy,
        ),
        housekeeping=Housekeeping(
            catalog,
            engine,
            Sweep(
                catalog,
                engine,
                lease_seconds=settings.lease_seconds,
                lock_folder=settings.lock_dir,
            ),
            hub.clock,
        ),
        orphaned=lambda: False,
    )
    return World(settings, catalog, engine, hub, lab, spy, worker)


def register(world: World) -> None:
    """Register the lab and a local repository in the world's data directory."""
    now = world.hub.clock.now()
    with world.catalog.write() as session:
        source = SourceRow(
            id="source-lab",
            uuid="source-lab",
            name="lab",
            type="image",
            config={},
            created_at=now,
            updated_at=now,
            trouble="",
        )
        session.add(source)
    place = world.settings.data_dir / "backups" / "one"
    world.repository_id = add_repository(world, "local", place)
    world.source_id = "source-lab"


def add_repository(world: World, name: str, path: Path) -> str:
    """Register one more local repository and return its id."""
    wanted = CreateRepository.model_validate(
        {"name": name, "type": "local", "config": {"path": str(path)}}
    )
    opened = repositories.open_or_make(world.hub, wanted)
    with world.catalog.write() as session:
        return repositories.create(session, world.hub, wanted, opened).id
