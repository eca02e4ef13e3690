"""`sendense source limit`: what the backups of a source may cost its guests."""

from typing import Annotated, Any

import typer

from sendense.cli import lookup
from sendense.cli.command import Session, command
from sendense.cli.failure import usage

LATENCY, REACTION, RATE = "write_latency_ms_max", "on_write_latency", "read_bytes_per_second_max"


def register(app: typer.Typer) -> None:
    """Add the command to its group."""
    command(
        app,
        "limit",
        examples=[
            "sendense source limit kvm1 --write-latency-ms-max 20",
            "sendense source limit kvm1 --write-latency-ms-max 50 --on-write-latency give_up",
            "sendense source limit vc1 --read-bytes-per-second-max 50000000",
            "sendense source limit kvm1 --none",
        ],
    )(limit)


def limit(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name or id of the source.")],
    write_latency_ms_max: Annotated[
        float | None,
        typer.Option(help="qemu: what a guest's writes may take on average, in milliseconds."),
    ] = None,
    on_write_latency: Annotated[
        str | None,
        typer.Option(
            help="Where they take longer: throttle (default) reads slower, down to 4 MiB/s;"
            " give_up fails the backup too where that does not help within 30 s."
        ),
    ] = None,
    read_bytes_per_second_max: Annotated[
        int | None, typer.Option(help="How fast each disk may be read at most.")
    ] = None,
    *,
    none: Annotated[bool, typer.Option("--none", help="Lift all limits.")] = False,
) -> None:
    """Limit what the backups of a source may cost its guests; only what is given is changed.

    It counts for backups whose reading begins afterwards.
    """
    values = {
        LATENCY: write_latency_ms_max,
        REACTION: on_write_latency,
        RATE: read_bytes_per_second_max,
    }
    given = {name: value for name, value in values.items() if value is not None}
    if bool(given) == none:
        raise usage("give limits, or --none to lift them all")
    found = session.api.get("sources", lookup.find_id(session.api, "sources", source)).data
    config: dict[str, Any] = {**found["config"], **given}
    if none:
        config = {name: value for name, value in config.items() if name not in values}
    answer = session.api.patch("sources", found["id"], body={"config": config})
    if session.answered(answer):
        return
    held = [f"{name} {config[name]}" for name in values if name in config]
    session.output.line(f"limits of source {source}: {', '.join(held) or 'none'}")
