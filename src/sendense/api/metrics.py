"""Figures for Prometheus: of this process's requests, and of the catalog.

What jobs and backups did is read from the catalog at each scrape, so it is right whichever worker
did it and whenever the hub was restarted. docs/operations/monitoring.md explains every figure.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.responses import Response

from sendense.core.errors import Unavailable
from sendense.hub.context import Hub, HubOf
from sendense.hub.figures import Figures, read_figures

# From a cached list to a capacity that a platform is asked for.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The figures of one application's requests; nothing of it is global."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sendense_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "sendense_http_request_duration_seconds",
            "How long requests took.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note a request that was answered. Thread-safe."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self, hub: Hub) -> bytes:
        """Return all figures in Prometheus's text format 0.0.4."""
        catalog = CollectorRegistry()
        catalog.register(_Catalog(hub))
        return generate_latest(self._registry) + generate_latest(catalog)


def get_metrics(request: Request, hub: HubOf) -> Response:
    """Answer a scrape; where the catalog is away, with what is known without it."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.render(hub), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Catalog(Collector):
    """Reads the catalog for one scrape."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def describe(self) -> Iterable[Metric]:
        """Name nothing: registering must not read the catalog."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of the catalog, or that it cannot be read."""
        build = GaugeMetricFamily("sendense_build_info", "The version.", labels=("version",))
        build.add_metric((self._hub.version,), 1)
        yield build
        try:
            figures: Figures | None = read_figures(self._hub)
        except Unavailable:
            figures = None
        yield GaugeMetricFamily(
            "sendense_catalog_up", "Whether the catalog answers.", value=figures is not None
        )
        if figures is not None:
            yield from _of_jobs(figures)
            yield from _of_backups(figures)
            yield from _of_repositories(figures)


def _of_jobs(figures: Figures) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily("sendense_jobs", "Jobs by state.", labels=("kind", "status")),
        figures.jobs,
    )
    yield GaugeMetricFamily(
        "sendense_jobs_oldest_waiting_seconds",
        "How long the job waits that waits longest; 0 where none does.",
        value=figures.oldest_waiting_seconds,
    )
    yield _labelled(
        GaugeMetricFamily("sendense_workers", "Workers by state.", labels=("status",)),
        figures.workers,
    )


def _of_backups(figures: Figures) -> Iterator[Metric]:
    yield _labelled(
        CounterMetricFamily(
            "sendense_backups", "Backups that ended, deleted ones included.", labels=("status",)
        ),
        figures.backups,
    )
    for name, about, value in (
        ("read", "Bytes that backups read from their sources.", figures.bytes_read),
        ("stored", "Bytes that were new to their repositories.", figures.bytes_new),
        ("deduplicated", "Bytes that repositories had already.", figures.bytes_deduplicated),
    ):
        yield CounterMetricFamily(f"sendense_backup_{name}_bytes", about, value=value)
    yield GaugeMetricFamily("sendense_vms", "VMs under management.", value=figures.vms)
    yield GaugeMetricFamily(
        "sendense_vms_without_backup",
        "VMs under management that have no completed backup.",
        value=figures.vms_without_backup,
    )
    yield _labelled(
        GaugeMetricFamily(
            "sendense_vm_last_backup_timestamp_seconds",
            "When the newest completed backup of a VM was completed, in seconds since 1970.",
            labels=("vm_id", "vm_name"),
        ),
        figures.last_backups,
    )


def _of_repositories(figures: Figures) -> Iterator[Metric]:
    capacity = GaugeMetricFamily(
        "sendense_repository_capacity_bytes",
        "Size of a repository's file system, as last measured.",
        labels=("repository_id", "name"),
    )
    free = GaugeMetricFamily(
        "sendense_repository_free_bytes",
        "Room left in a repository, as last measured.",
        labels=("repository_id", "name"),
    )
    trouble = GaugeMetricFamily(
        "sendense_repository_up",
        "Whether nothing was wrong with a repository when it was last measured.",
        labels=("repository_id", "name"),
    )
    for one in figures.repositories:
        labels = (one.repository_id, one.name)
        if one.capacity_bytes is not None:
            capacity.add_metric(labels, one.capacity_bytes)
        if one.free_bytes is not None:
            free.add_metric(labels, one.free_bytes)
        trouble.add_metric(labels, 0 if one.trouble else 1)
    yield from (capacity, free, trouble)


_FamilyT = TypeVar("_FamilyT", GaugeMetricFamily, CounterMetricFamily)


def _labelled(family: _FamilyT, values: Iterable[tuple[tuple[str, ...], float]]) -> _FamilyT:
    for labels, value in values:
        family.add_metric(labels, value)
    return family
