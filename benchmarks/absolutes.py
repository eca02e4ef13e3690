"""What must be reached in seconds or bytes: no ratio helps a user who waits for a list."""

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import catalog, contenders, estate, millions
from benchmarks.catalog import Question, Timing, as_a_hub_runs
from benchmarks.report import Found
from benchmarks.scale import Scale
from demo.golang import CannotFetch
from demo.vcenter.lab import Vcenter
from sendense.connectors import certificate
from sendense.connectors.vsphere import config, inventory
from sendense.connectors.vsphere.session import Session

MEGABYTE = 10**6
INDEX_CHUNKS = 10_000_000
ANONYMOUS_MAX = 400 * MEGABYTE
LIST_SECONDS_MAX = catalog.LIMIT_SECONDS
VMS = 1_000
DISCOVERY_SECONDS_MAX = 3.0
ROUNDS = 3


def list_found(cache: Path, work: Path, image: Path, measured: Scale) -> Iterator[Found]:
    """Measure and yield one after the other; those whose programs cannot be had are left out.

    A run that is not thorough leaves lists and discovery out.
    """
    memory = anonymous_bytes(cache, work, image, chunks=INDEX_CHUNKS)
    yield Found(
        f"RssAnon of a worker, {INDEX_CHUNKS:,} chunks in the index",
        "",
        ANONYMOUS_MAX / MEGABYTE,
        memory / MEGABYTE,
        is_cost=True,
        unit="MB",
    )
    if not measured.is_thorough:
        return
    question, timing = slowest_list(backups=estate.BACKUPS)
    asked = question.name.removeprefix("backups: ")
    yield Found(
        f"list of {estate.BACKUPS:,} backups in SQLite, p95, slowest by {asked}",
        "",
        LIST_SECONDS_MAX * 1e3,
        timing.p95 * 1e3,
        is_cost=True,
        unit="ms",
    )
    try:
        seconds = discovery_seconds(work, vms=VMS)
    except CannotFetch as error:
        print(f"left out: discovery, {error}", file=sys.stderr)
        return
    figure = f"discovery of {VMS:,} VMs (vcsim)"
    yield Found(figure, "", DISCOVERY_SECONDS_MAX, seconds, is_cost=True, unit="s")


def anonymous_bytes(cache: Path, work: Path, image: Path, *, chunks: int) -> int:
    """Return the anonymous memory of a process that backs up an image beside so many chunks."""
    repository = work / "millions"
    contenders.link(millions.make(cache, chunks=chunks), repository)
    with contenders.served(image) as socket:
        arguments = ["--repository", str(repository), "--socket", str(socket)]
        found = contenders.run_ours("full", "--name", "beside", *arguments)
    contenders.remove(repository)
    return found.memory


def slowest_list(*, backups: int) -> tuple[Question, Timing]:
    """Return the question for a list of backups that takes longest at the 95th percentile."""
    with catalog.built(backups) as (opened, known), as_a_hub_runs():
        timed = [
            (question, catalog.measure(opened, question))
            for question in catalog.list_questions(known)
            if question.name.startswith("backups")
        ]
    return max(timed, key=lambda one: one[1].p95)


def discovery_seconds(work: Path, *, vms: int) -> float:
    """Return how long it takes to list the VMs of a simulated vCenter. Raises CannotFetch."""
    with Vcenter(work / "vcenter", "-vms", str(vms)) as lab:
        # Straight to the simulator: the stand-in before it is not made for speed.
        pem = certificate.see("127.0.0.1", lab.simulator_port, pinned_pem=None).pem
        found = config.parse(lab.describe(), lab.credentials, Path)
        direct = replace(found, port=lab.simulator_port, certificate_pem=pem)
        seconds = []
        with Session(direct) as session, as_a_hub_runs():
            for _ in range(ROUNDS):
                began = time.perf_counter()
                listed = len(inventory.read(session).vms)
                seconds.append(time.perf_counter() - began)
                assert listed == vms, f"{listed} VMs are listed, {vms} are there"
    return statistics.median(seconds)
