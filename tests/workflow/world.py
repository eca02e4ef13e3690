"""A hub without HTTP and a worker in this process, on SQLite, a local repository and a lab."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sendense import app
from sendense.connectors.base import Source
from sendense.core.clock import SystemClock
from sendense.core.errors import SendenseError
from sendense.db.catalog import Catalog
from sendense.db.tables import BackupRow, ChainRow, JobRow, RepositoryRow, RestoreRow, SourceRow
from sendense.durable import client, lease, lease_terms
from sendense.durable.client import EngineClient, QueueLimits
from sendense.durable.engine import Engine, EngineSettings
from sendense.durable.fenced import FencedCatalog
from sendense.durable.sweep import Sweep
from sendense.hub.backups import service as backups
from sendense.hub.backups.schemas import StartBackup
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as job_queries
from sendense.hub.jobs import service as jobs
from sendense.hub.repositories import registration, root_keys
from sendense.hub.repositories import service as repositories
from sendense.hub.repositories.schemas import CreateRepository
from sendense.hub.restores import service as restores
from sendense.hub.restores.schemas import StartRestore
from sendense.hub.sources import service as sources
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.settings import Settings
from sendense.workflows.context import Context
from sendense.workflows.housekeeping import Housekeeping
from sendense.workflows.owner import WorkerOwner
from sendense.workflows.registry import WORKFLOWS
from sendense.workflows.worker import Worker
from tests.workflow.lab import Lab

WAIT_SECONDS_MAX = 180.0  # a machine that runs other tests beside
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Setting:
    """How one worker of a test is set up; the others of its world may differ.

    Attributes:
        machine: one of another name sees neither the lock files nor the processes of this one.
        clock_hours: how far the clock of its machine is off.
        freeze_in: a step in which it freezes itself, inside a transaction that writes.
    """

    worker_id: str = "worker-1"
    lease_seconds: float = 60.0
    catalog_url: str = ""
    engine_url: str = ""
    machine: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    clock_hours: float = 0.0
    bytes_per_second: int = 0
    freeze_in: str = ""


class ShiftedClock(SystemClock):
    """The clock of a machine that is some hours off."""

    def __init__(self, hours: float) -> None:
        self._shift = timedelta(hours=hours)

    def now(self) -> datetime:
        return super().now() + self._shift


class Spy(WorkerOwner):
    """The real owner; it also fails steps and calls the test where the test asks for it.

    Pauses between attempts are not waited for, unless it is `patient`. Steps are written down as
    they begin and end.
    """

    def __init__(self, catalog: Catalog, held: lease.Lease, events: Path) -> None:
        super().__init__(catalog, held, SystemClock())
        self._worker_id = held.worker_id
        self._events = events
        self._local = threading.local()
        self.patient = False
        self.faults: dict[str, list[SendenseError]] = {}
        self.calls: dict[str, Callable[[], None]] = {}
        self.steps: list[str] = []

    def step_started(self, workflow_id: str, step_name: str) -> None:
        self._local.step = step_name
        self._note("begins", workflow_id, step_name)
        self.steps.append(step_name)
        call = self.calls.pop(step_name, None)
        if call is not None:
            call()
        super().step_started(workflow_id, step_name)

    def step_ended(self, workflow_id: str, step_name: str, error: SendenseError | None) -> None:
        self._local.step = ""
        self._note("ends", workflow_id, step_name)
        super().step_ended(workflow_id, step_name, error)

    def _note(self, *words: str) -> None:
        note(self._events, self._worker_id, *words)

    def check_lease(self) -> None:
        super().check_lease()
        left = self.faults.get(getattr(self._local, "step", ""))
        if left:
            raise left.pop(0)

    def pause(self, job_id: str, seconds: float, *, cancellable: bool) -> None:
        super().pause(job_id, seconds if self.patient else 0.0, cancellable=cancellable)


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

    def waiting_reason(self, job_id: str) -> str | None:
        """Return what the API would say of a job that waits."""
        with self.catalog.read() as session:
            row = job_queries.get_job(session, job_id)
            return jobs.show_detail(session, self.hub, row).waiting_reason

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
                storage,
                root_key=root_keys.find(self.hub, row),
                clock=self.hub.clock,
                ids=self.hub.ids,
                reserve=NO_RESERVE,
            )

    def outcome(self, job_id: str) -> str | None:
        with self.repository() as repository:
            outcome = repository.find_outcome(job_id)
        return outcome.state if outcome is not None else None

    def open_sessions(self) -> list[str]:
        with self.repository() as repository:
            return [one.name for one in repository.storage.list_objects("sessions/")]


def note(path: Path, *words: str) -> None:
    """Write down that something happened, and when; at once and whole, whoever else writes."""
    line = f"{lease_terms.awake_seconds():.3f} {' '.join(words)}\n".encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, line)
    os.close(handle)


def settings_of(folder: Path, setting: Setting) -> Settings:
    """Return the settings of a world in a folder."""
    return Settings(
        data_dir=folder / "data",
        database_url=setting.catalog_url,
        engine_url=setting.engine_url,
        lease_seconds=setting.lease_seconds,
        worker_labels=setting.labels,
        no_auth=True,
    )


def build(folder: Path, setting: Setting) -> World:
    """Make or open a world in a folder; its worker does not run yet."""
    settings = settings_of(folder, setting)
    lock_folder = settings.lock_dir / setting.machine
    catalog = app.open_catalog(settings, migrate=True)
    if setting.clock_hours:
        _shift_database(catalog, setting.clock_hours)
    client.migrate(settings.jobs_url)
    engine = EngineClient(settings.jobs_url)
    events = folder / "events"
    lab = Lab(folder / "lab", events=events)
    (lab.folder / "vms").mkdir(parents=True, exist_ok=True)
    hub = replace(
        app.create_hub(settings, catalog, engine),
        open_source=lambda _kind, _config, _credentials=None: lab,
        clock=ShiftedClock(setting.clock_hours),
    )

    def end() -> None:
        note(events, setting.worker_id, "fenced")
        lease.end_process()

    held = lease.Lease(
        catalog,
        worker_id=setting.worker_id,
        lease_seconds=settings.lease_seconds,
        lock_folder=lock_folder,
        on_lost=end,
        about=lease.About(settings.worker_labels_with_host, "test"),
    )
    fenced = FencedCatalog(catalog, held)

    @contextlib.contextmanager
    def open_source(_row: SourceRow) -> Iterator[Source]:
        yield lab

    context = replace(
        app.create_context(settings, fenced, engine, held),
        open_source=open_source,
        clock=hub.clock,
    )
    spy = Spy(fenced, held, events)
    worker = _build_worker(setting, settings, context, fenced=fenced, catalog=catalog, spy=spy)
    return World(settings, catalog, engine, hub, lab, spy, worker)


def _build_worker(
    setting: Setting,
    settings: Settings,
    context: Context,
    *,
    fenced: FencedCatalog,
    catalog: Catalog,
    spy: Spy,
) -> Worker:
    """Return the worker of a world, not yet started."""
    held, engine = context.lease, context.engine
    return Worker(
        catalog=catalog,
        client=engine,
        lease=held,
        engine=Engine(
            EngineSettings(
                settings.jobs_url,
                setting.worker_id,
                QueueLimits(poll_seconds=0.05),
                settings.worker_labels_with_host,
                setting.lease_seconds,
            ),
            WORKFLOWS,
            context,
            spy,
        ),
        housekeeping=Housekeeping(
            fenced,
            engine,
            Sweep(
                fenced,
                engine,
                lease_seconds=settings.lease_seconds,
                lock_folder=settings.lock_dir / setting.machine,
                check_lease=held.check,
            ),
            context.clock,
        ),
        orphaned=lambda: False,
    )


def _shift_database(catalog: Catalog, hours: float) -> None:
    """Let SQLite tell the time of a machine that is some hours off."""

    def override(connection: Any, record: object) -> None:
        del record
        connection.create_function(
            "julianday", 1, lambda _now: 2440587.5 + (time.time() / 3600 + hours) / 24
        )

    sa.event.listen(catalog.engine, "connect", override)
    catalog.engine.dispose()


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
    opened = registration.open_or_make(world.hub, wanted)
    with world.catalog.write() as session:
        return registration.create(session, world.hub, wanted, opened).id
