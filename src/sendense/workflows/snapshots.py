"""Snapshots as JSON: what one step learns and another needs."""

from dataclasses import asdict
from typing import Any

from sendense.connectors.base import Consistency, DiskSnapshot, Snapshot


def to_data(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON; it holds no secret, by the connectors' contract."""
    return asdict(snapshot)


def from_data(data: dict[str, Any]) -> Snapshot:
    """Return the snapshot that `to_data` described."""
    return Snapshot(
        reference=data["reference"],
        moment=data["moment"],
        consistency=Consistency(data["consistency"]),
        disks=tuple(DiskSnapshot(**disk) for disk in data["disks"]),
        warnings=tuple(data["warnings"]),
    )
