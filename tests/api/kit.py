"""A hub on a folder of its own, served over a real socket, and what tests need around it.

Discovery and backups are done here as their workflows do them, with the same connectors, queries
and repositories, but in the test's own thread: what is tested is the API, not the engine.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import ExceptionContext, event, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import QueuePool

from sendense.api import server
from sendense.connectors import registry
from sendense.core.clock import ManualClock
from sendense.core.errors import Unavailable
from sendense.core.ids import SeededIds, SystemIds
from sendense.db.base import Base
from sendense.db.catalog import Catalog
from sendense.db.tables import BackupRow, DiskRow, SourceRow
from sendense.durable.lease import About, WorkerState
from sendense.hub.backups import queries as backups
from sendense.hub.backups.queries import BackupResult, DiskResult
from sendense.hub.backups.schemas import BackupType
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.keyfile import KeyPlaces
from sendense.hub.paths import USER_FOLDERS, AllowedDirs
from sendense.hub.repositories import queries as repository_queries
from sendense.hub.repositories import root_keys
from sendense.hub.repositories import service as repositories
from sendense.hub.sealing import Vault
from sendense.hub.vms import queries as vms
from sendense.repository.manifest import (
    DiskIdentity,
    DiskTotals,
    Manifest,
    ManifestDraft,
    VmRecord,
)
from sendense.repository.manifest import (
    Mode as ReadMode,
)
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.storage.local import LocalStorage
from tests.servers.process import wait_until
from tests.unit.db.rows import FOREIGN_KEY, broken_rule

DISK_BYTES = 1024 * 1024
START_SECONDS_MAX = 10.0
CHANGE_ID = "change-{}"
WORKER = WorkerState(
    worker_id="worker-1",
    host="nas1",
    pid=7,
    about=About({"host": "nas1"}, "0.1.0"),
    started_at=1_700_000_000.0,
    beat_at=1_700_000_100.0,
    age_seconds=1.5,
)


@dataclass
class RecordingStarter:
    """An engine that remembers what it was given, and may be out of reach."""

    started: list[tuple[str, str]] = field(default_factory=list)
    reachable: bool = True
    required: dict[str, dict[str, str]] = field(default_factory=dict)

    def start(
        self,
        workflow_name: str,
        workflow_id: str,
        *args: Any,
        priority: int,
        required: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        assert not args, "a workflow finds everything by its job's id"
        assert priority > 0, "an unset priority is the highest"
        if not self.reachable:
            raise Unavailable("the job engine's database does not answer")
        self.started.append((workflow_name, workflow_id))
        self.required[workflow_id] = dict(required)


@dataclass
class Lab:
    """A hub and its surroundings.

    Attributes:
        api: a client of its /api/v1.
        images: a folder that requests may name.
    """

    hub: Hub
    api: httpx.Client
    starter: RecordingStarter
    clock: ManualClock
    data_dir: Path
    images: Path
    served: "Served"
    recovery_keys: dict[str, str] = field(default_factory=dict)

    def image(self, name: str, size: int = DISK_BYTES) -> Path:
        """Make a sparse image file."""
        path = self.images / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def add_source(self, *vms: dict[str, Any], name: str = "lab") -> str:
        """Register an image source and return its id."""
        body = {"name": name, "type": "image", "config": {"vms": list(vms)}}
        answer = self.api.post("/sources", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def discover(self, source_id: str) -> None:
        """Do what the discovery's workflow does."""
        with self.hub.catalog.read() as session:
            row = session.get_one(SourceRow, source_id)
        source = self.hub.open_source(row.type, row.config)
        try:
            found = source.list_vms()
        finally:
            source.close()
        with self.hub.catalog.write() as session:
            vms.upsert_vms(
                session,
                session.get_one(SourceRow, source_id),
                found,
                gone=vms.list_present_uuids(session, source_id) - {vm.uuid for vm in found},
                ids=self.hub.ids,
                now=self.clock.now(),
            )

    def add_vm(self, name: str = "pgtest1", *, disks: int = 2, source: str = "lab") -> str:
        """Register a VM on a source of its own, discover it, and return its id."""
        files = [
            str(self.image(f"{source}-{name}-{n}.raw".replace("/", "_"))) for n in range(disks)
        ]
        self.discover(self.add_source({"name": name, "disks": files}, name=source))
        listed = self.api.get("/vms", params={"name": name}).json()["vms"]
        return str(next(vm["id"] for vm in listed))

    def add_repository(self, name: str = "main") -> str:
        """Register a repository in the data directory and return its id."""
        path = self.data_dir / "backups" / name
        body = {"name": name, "type": "local", "config": {"path": str(path)}}
        answer = self.api.post("/repositories", json=body)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        self.recovery_keys[made["id"]] = made["recovery_key"]
        return str(made["id"])

    def start_backup(self, repository_id: str, **body: Any) -> dict[str, Any]:
        """Ask for a backup and return the answer."""
        wanted = {"vm_name": "pgtest1", "repository_id": repository_id, **body}
        answer = self.api.post("/backups", json=wanted)
        assert answer.status_code == 202, answer.text
        accepted: dict[str, Any] = answer.json()
        return accepted

    def complete(self, backup_id: str, *, change_ids: bool = True) -> None:
        """Write, commit and record a backup, as its workflow does."""
        with self.hub.catalog.write() as session:
            row = backups.begin_backup(session, backup_id, now=self.clock.now())
            disks = backups.list_disks(session, [backup_id])[backup_id]
            repository = repository_queries.get_repository(session, row.repository_id)
            jobs.begin(session, row.job_id or "", now=self.clock.now())
        self.clock.advance(10)
        storage = LocalStorage(Path(repository.config["path"]))
        opened = Repository.open(
            storage,
            root_key=root_keys.find(self.hub, repository),
            clock=self.clock,
            ids=self.hub.ids,
            reserve=NO_RESERVE,
        )
        try:
            made = _commit(opened, row, disks)
        finally:
            opened.close()
        result = BackupResult(
            backup_id=backup_id,
            consistency="crash",
            moment="moment",
            warnings=(),
            skipped=(),
            immutable_until=made.immutable_until,
            disks=tuple(
                DiskResult(
                    key=disk.key,
                    capacity_bytes=disk.capacity_bytes,
                    uuid=disk.uuid,
                    change_id=CHANGE_ID.format(backup_id) if change_ids else None,
                    root="00" * 32,
                    backup_type=BackupType(disk.backup_type),
                    type_reason=disk.type_reason,
                    parent_backup_id=disk.parent_backup_id,
                    bytes_read=disk.capacity_bytes,
                    bytes_new=100,
                    bytes_deduplicated=0,
                )
                for disk in disks
            ),
        )
        with self.hub.catalog.write() as session:
            backups.complete_backup(session, result, now=self.clock.now())
            jobs.finish(session, row.job_id or "", JobStatus.COMPLETED, now=self.clock.now())
        self.clock.advance(60)

    def back_up(self, repository_id: str, **body: Any) -> str:
        """Make a whole backup and return its id."""
        backup_id = str(self.start_backup(repository_id, **body)["backup_id"])
        self.complete(backup_id)
        return backup_id

    def track_changes(self) -> None:
        """Let all disks look as if their platform could tell what changed."""
        with self.hub.catalog.write() as session:
            for disk in session.query(DiskRow):
                disk.tracking = "supported"

    def replace_hub(self, **changes: Any) -> None:
        """Give the running application other collaborators."""
        self.hub = self.served.app.state.hub = replace(self.hub, **changes)

    def count_rows(self) -> dict[str, int]:
        """Return the number of rows of each table: what a refused request must not change."""
        with self.hub.catalog.read() as session:
            return {
                name: session.scalar(select(func.count()).select_from(table)) or 0
                for name, table in Base.metadata.tables.items()
            }


def _commit(repository: Repository, row: BackupRow, disks: Sequence[Any]) -> Manifest:
    session_id = str(row.job_id)
    repository.begin_session(session_id)
    for disk in disks:
        identity = DiskIdentity(disk.key, disk.index, disk.label, disk.uuid, disk.capacity_bytes)
        with repository.open_disk_writer(session_id, identity, moment="moment") as writer:
            writer.put_zero(0, writer.chunk_count)
            writer.finish(DiskTotals(ReadMode.FULL))
    return repository.commit(
        session_id,
        ManifestDraft(
            backup_id=row.id,
            vm=VmRecord("image", "lab", "source", str(row.vm_id), row.vm_name),
            disk_keys=tuple(disk.key for disk in disks),
            moment="moment",
            consistency="crash",
            requested_type=row.requested_type,
            created_at=row.created_at,
            started_at=row.created_at,
            tags=row.tags,
        ),
    )


def make_hub(folder: Path, catalog: Catalog) -> tuple[Hub, RecordingStarter, ManualClock]:
    """Return a hub on a new folder and a migrated, empty catalog."""
    data_dir, images = folder / "data", folder / "images"
    images.mkdir()
    for name in USER_FOLDERS:
        (data_dir / name).mkdir(parents=True)
    paths = AllowedDirs(data_dir, [images])
    starter, clock = RecordingStarter(), ManualClock()
    hub = Hub(
        catalog=catalog,
        paths=paths,
        starter=starter,
        clock=clock,
        ids=SeededIds(1),
        version="0.0.0",
        open_storage=repositories.storage_opener(paths),
        open_source=lambda kind, config, credentials=None: registry.open_source(
            kind,
            config,
            resolve=paths.resolve,
            scratch=folder / "scratch",
            credentials=credentials,
            owner="hub-1",
        ),
        check_source=lambda kind, config, credentials=None: registry.validate_config(
            kind, config, resolve=paths.resolve, credentials=credentials
        ),
        see_certificate=lambda kind, config: registry.see_certificate(
            kind, config, resolve=paths.resolve
        ),
        list_warnings=registry.list_warnings,
        vault=Vault(KeyPlaces(data_dir, SystemIds()), SystemIds()),
        list_workers=lambda _session: [(WORKER, True)],
        list_running=lambda: {"worker-1": {"job-1"}},
        lease_seconds=60.0,
    )
    return hub, starter, clock


@contextmanager
def open_lab(folder: Path, catalog: Catalog, served: "Served") -> Iterator[Lab]:
    """Let the running server serve a new hub until the block ends.

    Whatever is asked of it, it must never write rows in an order that a foreign key forbids.
    """
    hub, starter, clock = make_hub(folder, catalog)
    broken: list[str] = []

    def note(context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if isinstance(error, IntegrityError) and broken_rule(error) == FOREIGN_KEY:
            broken.append(str(error))

    event.listen(catalog.engine, "handle_error", note)
    served.app.state.hub = hub
    with httpx.Client(base_url=f"{served.url}/api/v1", timeout=30) as api:
        yield Lab(hub, api, starter, clock, folder / "data", folder / "images", served)
    # A listener that has left is noticed at the server's next look; until then it may ask again.
    pool = catalog.engine.pool
    assert isinstance(pool, QueuePool), "each database gets one"
    listeners = served.app.state.listeners
    wait_until(lambda: not len(listeners), START_SECONDS_MAX, "the last listener's end")
    wait_until(lambda: pool.checkedout() == 0, START_SECONDS_MAX, "the last request")
    event.remove(catalog.engine, "handle_error", note)
    assert broken == []


@dataclass(frozen=True)
class Served:
    """The application behind a real socket; one for all tests, its hub is exchanged."""

    app: FastAPI
    url: str


@contextmanager
def serve(hub: Hub) -> Iterator[Served]:
    """Serve the application on a free port until the block ends."""
    app = server.create_app(hub)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1, ws="none"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS_MAX
    while not running.started:
        assert time.monotonic() < deadline, "the server did not start"
        assert thread.is_alive(), "the server ended"
        time.sleep(0.005)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(app, f"http://127.0.0.1:{port}")
    finally:
        running.should_exit = True
        thread.join(timeout=START_SECONDS_MAX)


def check_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Assert that an answer is a whole problem document of this kind, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:sendense:problem:{kind}", document
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return document


def later(lab: Lab, seconds: float) -> str:
    """Return a moment after now, as a query wants it."""
    return (lab.clock.now() + timedelta(seconds=seconds)).isoformat()
