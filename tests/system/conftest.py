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


def create_guest(
    folder: Path, guest_image: image.GuestImage, *, second: str = "qcow2", **more: Any
) -> Guest:
    """Return a guest with a partitioned qcow2 disk and a second disk of some format."""
    files = folder / "files"
    files.mkdir(parents=True)
    (files / "hello").write_bytes(b"hello from the host\n" * 5000)
    disks.make_partitioned(folder / "0.img", DISK_BYTES, files, image_format="qcow2")
    disks.make_filesystem(folder / "1.img", SECOND_BYTES, image_format=second)
    return Guest(
        name=folder.name,
        uuid=str(uuid.uuid4()),
        folder=folder,
        image=guest_image,
        disks=[
            Disk("disk0", folder / "0.img", "qcow2"),
            Disk("disk1", folder / "1.img", second),
        ],
        mounts=[("/dev/vda1", "/mnt/a"), ("/dev/vdb", "/mnt/b")],
        **more,
    )


MakeGuest = Callable[..., Guest]


@pytest.fixture
def make_guest(folder: Path, guest_image: image.GuestImage) -> Iterator[MakeGuest]:
    """Return a maker of guests; see `create_guest`. They end with the test."""
    with ExitStack() as stack:

        def make(name: str = "guest", **more: Any) -> Guest:
            return stack.enter_context(create_guest(folder / name, guest_image, **more))

        yield make


@pytest.fixture(scope="module")
def shared_guest(guest_image: image.GuestImage) -> Iterator[Guest]:
    """Return a running guest for the tests of a module that leave it as they found it."""
    with (
        tempfile.TemporaryDirectory(prefix="sendense-test-") as name,
        create_guest(Path(name) / "shared", guest_image) as guest,
    ):
        guest.start()
        yield guest


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
    return QemuSource({"vms": vms}, Path, guests[0].folder / "scratch")
