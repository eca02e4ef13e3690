"""The application: routes under /api/v1, the gate in front, problem documents for failures."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from sendense.api import docs, errors, health, metrics, repeats
from sendense.api.gate import Gate
from sendense.api.requests import Requests
from sendense.hub import retries
from sendense.hub.backups import routes as backups
from sendense.hub.context import Hub
from sendense.hub.jobs import events
from sendense.hub.jobs import routes as jobs
from sendense.hub.problem import Problem
from sendense.hub.repositories import routes as repositories
from sendense.hub.restores import routes as restores
from sendense.hub.sources import routes as sources
from sendense.hub.vms import routes as vms
from sendense.hub.workers import routes as workers

BASE_PATH = "/api/v1"
DOCS_PATH = f"{BASE_PATH}/docs"
OPENAPI_PATH = f"{BASE_PATH}/openapi.json"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")

_DESCRIPTION = """\
Backs up virtual machines without an agent inside them: discovers them on their platforms, takes
full and incremental image backups of their disks, keeps these in deduplicating repositories, and
gives them back.

Sizes are bytes, times UTC (ISO 8601), ids text. Lists answer `{"<noun>": […], "total": n}` and take
`limit` and `offset`. Failures are `application/problem+json` with a `type` for each kind.
Work that was started answers 202 with a job and its `Location`; send an `Idempotency-Key` to be
able to repeat such a request safely.
"""


def create_app(hub: Hub, *, hosts: Collection[str] = LOOPBACK_HOSTS) -> FastAPI:
    """Return the application; `hosts` are the names under which it may be addressed."""
    prober = health.Prober()

    @asynccontextmanager
    async def close_prober(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        prober.close()

    app = FastAPI(
        title="Sendense",
        version=hub.version,
        description=_DESCRIPTION,
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name whatever host the request named
        lifespan=close_prober,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.hub = hub
    app.state.prober = prober
    app.state.listeners = events.Listeners()
    app.state.metrics = metrics.Metrics()
    errors.install(app)
    api = APIRouter(prefix=BASE_PATH)
    for router in (
        sources.router,
        vms.router,
        repositories.router,
        backups.router,
        restores.router,
        jobs.router,
        retries.router,
        workers.router,
    ):
        api.include_router(router, dependencies=[Depends(repeats.refuse)])
    for router in (health.router, docs.router):
        api.include_router(router)
    app.include_router(api)
    app.add_api_route(
        "/health", health.get_health, include_in_schema=False, response_model=health.Health
    )
    app.add_api_route("/metrics", metrics.get_metrics, include_in_schema=False)
    app.add_middleware(Gate, hosts=hosts, policies={DOCS_PATH: docs.POLICY})
    # The last one added is the outermost.
    app.add_middleware(Requests, metrics=app.state.metrics, base_path=BASE_PATH)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign] # FastAPI's documented way
    return app


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, made once: with our problems instead of the framework's."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        schemas = found["components"]["schemas"]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        app.openapi_schema = found
    return app.openapi_schema
