"""Real guests for the system tests, in folders short enough for unix sockets."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from demo.guest import disk as disks
from demo.guest import image
from demo.guest.vm import Disk, Guest
from sendense.connectors.qemu.source import QemuSource
from sendense.core.units import MIB

DISK_BYTES = 96 * MIB
SECOND_BYTES = 40 * MIB


@pytest.fixture(scope="session")
def guest_image() -> image.GuestImage:
    return image.build()


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's own folder: its path is too long for a unix socket's name.
    with tempfile.TemporaryDirectory(prefix="sendense-test-") as name:
        yield Path(name)


MakeGuest = Callable[..., Guest]


@pytest.fixture
def make_guest(folder: Path, guest_image: image.GuestImage) -> Iterator[MakeGuest]:
    """Return a maker of guests with a partitioned qcow2 disk and a second disk of some format."""
    with ExitStack() as stack:

        def make(name: str = "guest", *, second: str = "qcow2", **more: Any) -> Guest:
            home = folder / name
            files = home / "files"
            files.mkdir(parents=True)
            (files / "hello").write_bytes(b"hello from the host\n" * 5000)
            disks.make_partitioned(home / "0.img", DISK_BYTES, files, image_format="qcow2")
            disks.make_filesystem(home / "1.img", SECOND_BYTES, image_format=second)
            guest = Guest(
                name=name,
                uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
                folder=home,
                image=guest_image,
                disks=[
                    Disk("disk0", home / "0.img", "qcow2"),
                    Disk("disk1", home / "1.img", second),
                ],
                mounts=[("/dev/vda1", "/mnt/a"), ("/dev/vdb", "/mnt/b")],
                **more,
            )
            return stack.enter_context(guest)

        yield make


def open_source(*guests: Guest, agent: bool = True) -> QemuSource:
    """Return a source over guests, with its scratch folder beside the first one's disks."""
    vms = [
        {
            "name": guest.name,
            "qmp": str(guest.qmp_socket),
            "agent": str(guest.agent_socket) if agent else None,
        }
        for guest in guests
    ]
    return QemuSource({"vms": vms}, allowed=Path, scratch_root=guests[0].folder / "scratch")
