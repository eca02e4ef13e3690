"""Images in odd states: changed while they are read, denied, or no files at all."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sendense.connectors.base import ConsistencyWish, DiskRequest, SnapshotRequest
from sendense.connectors.image import image
from sendense.connectors.image.config import QCOW2, RAW, ImageDisk
from sendense.connectors.image.source import ImageSource
from sendense.core import units
from sendense.core.errors import Conflict, Denied, Invalid, NotFound, SendenseError, Unavailable
from sendense.nbd.client import Client
from tests.identity import nobody

KEY = 2000
SIZE = 256 * units.KIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "disk.raw"
    place.write_bytes(b"old." * (SIZE // 4))
    return place


def source_of(path: Path) -> ImageSource:
    return ImageSource({"vms": [{"name": "vm", "disks": [str(path)]}]}, Path)


def request(source: ImageSource, wish: ConsistencyWish = ConsistencyWish.PREFER) -> SnapshotRequest:
    return SnapshotRequest(source.list_vms()[0].uuid, "job-1", (DiskRequest(KEY, "l"),), wish)


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(b"new." * (SIZE // 4))
    facts = path.stat()
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as `cp -p` and `mv` would
    other.replace(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"new.")


def shrink(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def grow(path: Path) -> None:
    os.truncate(path, SIZE * 2)


CHANGES = [replace, overwrite, shrink, grow, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_the_image_is_read_is_noticed(
    path: Path, change: Callable[[Path], None]
) -> None:
    source = source_of(path)
    snapshot = source.take_snapshot(request(source))
    assert not source.was_written(snapshot.reference, KEY)
    with (
        source.open_disk(snapshot.reference, KEY) as view,
        Client.connect(view.address) as client,
    ):
        assert client.read(0, 4) == b"old."
        change(path)
        try:
            found = client.read(0, view.size_bytes)
        except Unavailable:
            found = bytearray()  # or an error, and so no backup
        assert len(found) in {0, SIZE}
        if change is replace:
            assert found == b"old." * (SIZE // 4), "the old file is read to its end"
    assert source.was_written(snapshot.reference, KEY)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_before_the_image_is_opened_is_noticed(
    path: Path, change: Callable[[Path], None]
) -> None:
    source = source_of(path)
    snapshot = source.take_snapshot(request(source))
    change(path)
    kinds = {shrink: "snapshot-lost", grow: "snapshot-lost", Path.unlink: "image-missing"}
    with contextlib.suppress(SendenseError), source.open_disk(snapshot.reference, KEY):
        assert change not in kinds
    if change in kinds:
        with (
            pytest.raises(SendenseError) as caught,
            source.open_disk(snapshot.reference, KEY),
        ):
            pass
        assert caught.value.kind == kinds[change]
    assert source.was_written(snapshot.reference, KEY)
    if change is not Path.unlink:
        assert source.take_snapshot(request(source)).moment != snapshot.moment


def test_a_write_right_after_the_snapshot_is_noticed_every_time(path: Path) -> None:
    source = source_of(path)
    wanted = request(source)
    for _ in range(20):  # fails without the source's wait only before Linux 6.13
        overwrite(path)  # the stamp's time and that of the next write are as near as can be
        snapshot = source.take_snapshot(wanted)
        overwrite(path)
        assert source.was_written(snapshot.reference, KEY)


def describe(path: Path, image_format: str) -> ImageDisk:
    return ImageDisk(str(path), image_format, stated=True)


@pytest.mark.parametrize("image_format", [RAW, QCOW2])
def test_an_image_that_may_not_be_read_is_denied_and_says_so_in_discovery(
    path: Path, image_format: str
) -> None:
    if image_format == QCOW2:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    path.chmod(0)
    config = {"vms": [{"name": "vm", "disks": [{"path": str(path), "format": image_format}]}]}
    source = ImageSource(config, Path)
    with nobody():
        with pytest.raises(Denied) as caught:
            source.take_snapshot(request(source))
        assert caught.value.kind == "image-denied"
        (disk,) = source.list_vms()[0].disks
        assert disk.capacity_bytes is None
        assert disk.excluded_reason == caught.value.message
        with pytest.raises(Denied):
            source.probe()


def test_what_is_no_file_is_told_from_what_is_broken(tmp_path: Path) -> None:
    folder, loop, listener = tmp_path / "folder", tmp_path / "loop", tmp_path / "socket"
    folder.mkdir()
    loop.symlink_to(loop)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(listener))
        for path in (folder, loop, listener, Path("/dev/null")):
            for image_format in (RAW, QCOW2):
                with pytest.raises(Invalid) as caught:
                    image.inspect(describe(path, image_format), Path)
                assert caught.value.kind == "image-broken"
    with pytest.raises(NotFound):
        image.inspect(describe(Path("/dev/null/disk"), RAW), Path)
    with pytest.raises(Unavailable) as long_name:
        image.inspect(describe(tmp_path / ("x" * 300), RAW), Path)
    assert long_name.value.kind == "source-silent"


def test_images_cannot_be_frozen_and_say_so(path: Path) -> None:
    source = source_of(path)
    with pytest.raises(Conflict) as caught:
        source.take_snapshot(request(source, ConsistencyWish.REQUIRE))
    assert caught.value.kind == "consistency-impossible"


# qemu-img in the way.


@pytest.mark.parametrize(
    ("script", "raised", "kind"),
    [
        ("echo 'Permission denied' >&2; exit 1", Denied, "image-denied"),
        ("printf 'b\\377d' >&2; exit 1", Invalid, "image-broken"),
        ("exec sleep 60", Unavailable, "source-silent"),
        (None, Unavailable, "program-missing"),
    ],
)
def test_a_qemu_img_that_does_not_help_is_an_error_of_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    raised: type[SendenseError],
    kind: str,
) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    monkeypatch.setattr(image, "INFO_SECONDS_MAX", 0.5)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))
    if script:
        (tmp_path / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "qemu-img").chmod(0o755)
    with pytest.raises(raised) as caught:
        image.inspect(describe(path, QCOW2), Path)
    assert caught.value.kind == kind


# Block devices.


@pytest.fixture
def device(path: Path) -> Iterator[Path]:
    """A block device whose content is the file's; only root may make one, and not everywhere."""
    if shutil.which("losetup") is None or os.geteuid() != 0:
        pytest.skip("a loop device needs losetup and root")
    made = subprocess.run(
        ["losetup", "--find", "--show", str(path)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    name = made.stdout.strip()
    yield Path(name)
    subprocess.run(["losetup", "--detach", name], check=True)


def test_a_block_device_is_backed_up_and_its_writes_are_noticed(device: Path) -> None:
    source = source_of(device)
    snapshot = source.take_snapshot(request(source))
    assert snapshot.disks[0].size_bytes == SIZE
    with (
        source.open_disk(snapshot.reference, KEY) as view,
        Client.connect(view.address) as client,
    ):
        assert client.read(0, SIZE) == b"old." * (SIZE // 4)
        assert not source.was_written(snapshot.reference, KEY)
        with device.open("r+b") as file:
            file.write(b"new.")
            file.flush()
            os.fsync(file.fileno())
    assert source.was_written(snapshot.reference, KEY)


def test_a_device_that_the_kernel_does_not_count_for_has_no_count() -> None:
    assert image._count_writes("4095:1048575") == ""


def test_discovery_survives_a_limit_of_open_files(path: Path) -> None:
    program = (
        "import json, resource, sys\n"
        "from pathlib import Path\n"
        "from sendense.connectors.image.source import ImageSource\n"
        "source = ImageSource({'vms': [{'name': 'vm', 'disks': [sys.argv[1]]}]}, Path)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "(disk,) = source.list_vms()[0].disks\n"
        "print(json.dumps(disk.excluded_reason))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert "Too many open files" in json.loads(done.stdout)
