"""The options that describe a vCenter, for `sendense source add` and `test`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli.failure import usage

TYPE = "vsphere"

HostOption = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST[:PORT]", help="vsphere: the vCenter or ESXi host."),
]
ReaderOption = Annotated[
    str | None,
    typer.Option(
        "--reader", help="vsphere: vddk (default), or file: for development, reads no real disk."
    ),
]
VddkOption = Annotated[
    Path | None,
    typer.Option(
        "--vddk-libdir", metavar="DIR", help="vsphere: where VMware's VDDK is, on the workers."
    ),
]
FileDirOption = Annotated[
    Path | None,
    typer.Option("--file-dir", metavar="DIR", help="vsphere with --reader file: the disks."),
]


def describe(
    kind: str | None,
    *,
    host: str | None,
    reader: str | None,
    vddk_libdir: Path | None,
    file_dir: Path | None,
) -> dict[str, Any] | None:
    """Return a vCenter's configuration, or None where no option describes one."""
    more = {
        "reader": reader,
        "vddk_libdir": None if vddk_libdir is None else str(vddk_libdir.absolute()),
        "file_dir": None if file_dir is None else str(file_dir.absolute()),
    }
    given = {key: value for key, value in more.items() if value is not None}
    if host is None:
        if given:
            raise usage("--reader, --vddk-libdir and --file-dir belong to --host")
        return None
    if kind != TYPE:
        raise usage(f"--host is for the type {TYPE}; type {kind} takes --vm or --config FILE")
    return {"host": host, **given}
