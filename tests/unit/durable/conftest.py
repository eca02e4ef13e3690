import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sendense.core.errors import SendenseError
from sendense.db import schema as catalog_schema
from sendense.db.catalog import Catalog
from sendense.durable.client import NO_LABELS, EngineClient, QueueLimits, WorkflowState, migrate
from sendense.durable.definition import Workflow
from sendense.durable.engine import Engine, EngineSettings

WAIT_SECONDS_MAX = 20.0
POLL_SECONDS = 0.02


@dataclass
class World:
    """A folder with a catalog and an engine's database, and engines on it."""

    folder: Path
    catalog: Catalog
    client: EngineClient
    url: str
    calls: list[Any] = field(default_factory=list)
    pauses: list[tuple[str, float, bool]] = field(default_factory=list)
    shown: list[tuple[str, str, str]] = field(default_factory=list)
    engines: list[Engine[Any]] = field(default_factory=list)

    @property
    def lock_folder(self) -> Path:
        return self.folder / "workers"

    def launch(
        self,
        *workflows: Workflow[Any],
        executor_id: str = "worker-1",
        check_lease: Callable[[], None] = lambda: None,
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Engine[Any]:
        engine = Engine(
            EngineSettings(self.url, executor_id, QueueLimits(poll_seconds=0.05), labels),
            workflows,
            self.calls,
            _Owner(self, check_lease),
        )
        engine.launch()
        self.engines.append(engine)
        return engine

    def wait(self, workflow_id: str) -> WorkflowState:
        waiting = threading.Event()
        for _ in range(int(WAIT_SECONDS_MAX / POLL_SECONDS)):
            state = self.client.find(workflow_id)
            if state is not None and state.ended:
                return state
            waiting.wait(POLL_SECONDS)
        raise AssertionError(f"{workflow_id} did not end: {self.client.find(workflow_id)}")


class _Owner:
    def __init__(self, world: World, check_lease: Callable[[], None]) -> None:
        self._world = world
        self.check_lease = check_lease

    def pause(self, job_id: str, seconds: float, *, cancellable: bool) -> None:
        self._world.pauses.append((job_id, seconds, cancellable))

    def step_started(self, workflow_id: str, step_name: str) -> None:
        self._world.shown.append((workflow_id, step_name, "started"))

    def step_ended(self, workflow_id: str, step_name: str, error: SendenseError | None) -> None:
        self._world.shown.append((workflow_id, step_name, error.kind if error else "ended"))


@contextmanager
def open_world(folder: Path, *, catalog_url: str, engine_url: str) -> Iterator[World]:
    catalog = Catalog(catalog_url)
    catalog_schema.migrate(catalog)
    migrate(engine_url)
    client = EngineClient(engine_url)
    made = World(folder, catalog, client, engine_url)
    yield made
    for engine in made.engines:
        engine.stop(wait_seconds=0)
    client.close()
    catalog.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(
        tmp_path,
        catalog_url=f"sqlite:///{tmp_path}/catalog.sqlite",
        engine_url=f"sqlite:///{tmp_path}/engine.sqlite",
    ) as made:
        yield made
