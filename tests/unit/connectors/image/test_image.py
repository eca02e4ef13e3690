"""What an image file may be, and which files it may drag in."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sendense.connectors.base import DiskRequest, SnapshotRequest
from sendense.connectors.image import image
from sendense.connectors.image.config import QCOW2, RAW, ImageDisk
from sendense.connectors.image.source import ImageSource
from sendense.core import units
from sendense.core.errors import Conflict, Denied, Invalid, NotFound, SendenseError
from sendense.hub.paths import AllowedDirs
from sendense.nbd import process
from sendense.nbd.client import Client

KEY = 2000
SECRET = b"secret!!" * 64 * 128  # as long as a small disk


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("data", "allowed", "private"):
        (tmp_path / name).mkdir()
    (tmp_path / "private" / "secret.raw").write_bytes(SECRET)
    return tmp_path


@pytest.fixture
def resolve(place: Path) -> Callable[[str], Path]:
    return AllowedDirs(place / "data", [place / "allowed"]).resolve


def create(path: Path, *options: str, size: str | None = "64K") -> Path:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path)]
    subprocess.run([*command, *([size] if size else [])], check=True, cwd=path.parent)
    return path


def qcow2(path: Path) -> ImageDisk:
    return ImageDisk(str(path), QCOW2, stated=True)


def raw(path: Path, *, stated: bool = False) -> ImageDisk:
    return ImageDisk(str(path), RAW, stated=stated)


def test_a_raw_file_is_as_long_as_it_is(place: Path, resolve: Callable[[str], Path]) -> None:
    path = place / "allowed" / "disk.raw"
    path.write_bytes(bytes(512))
    found = image.inspect(raw(path), resolve)
    assert (found.size_bytes, found.image_format, found.path) == (512, RAW, path)


@pytest.mark.parametrize("size", [0, 1, 511, 513, units.MIB + 1])
def test_a_raw_file_that_is_no_disk_is_refused(
    place: Path, resolve: Callable[[str], Path], size: int
) -> None:
    path = place / "allowed" / "disk.raw"
    path.write_bytes(bytes(size))
    with pytest.raises(Invalid) as caught:
        image.inspect(raw(path), resolve)
    assert caught.value.kind == "image-size-odd"


def test_what_is_no_file_is_refused_without_being_opened(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    os.mkfifo(place / "allowed" / "fifo")
    (place / "allowed" / "folder").mkdir()
    for name in ("fifo", "folder"):
        for disk in (raw(place / "allowed" / name), qcow2(place / "allowed" / name)):
            with pytest.raises(Invalid) as caught:
                image.inspect(disk, resolve)
            assert caught.value.kind == "image-broken"
    with pytest.raises(NotFound) as missing:
        image.inspect(raw(place / "allowed" / "missing"), resolve)
    assert missing.value.kind == "image-missing"


def test_a_header_written_by_the_guest_is_not_believed(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    path = create(place / "allowed" / "disk.raw", size="1M")
    with pytest.raises(Invalid) as caught:
        image.inspect(raw(path), resolve)
    assert caught.value.kind == "image-format-unclear"
    length = path.stat().st_size // units.SECTOR * units.SECTOR
    os.truncate(path, length)
    assert image.inspect(raw(path, stated=True), resolve).size_bytes == length


def test_a_raw_file_called_qcow2_is_refused(place: Path, resolve: Callable[[str], Path]) -> None:
    path = place / "allowed" / "disk.qcow2"
    path.write_bytes(bytes(4096))
    with pytest.raises(Invalid) as caught:
        image.inspect(qcow2(path), resolve)
    assert caught.value.kind == "image-broken"


def test_a_chain_within_allowed_places_is_one_image(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    create(place / "allowed" / "base.qcow2", size="1M")
    create(place / "allowed" / "top.qcow2", "-b", "base.qcow2", "-F", "qcow2", size=None)
    before = image.inspect(qcow2(place / "allowed" / "top.qcow2"), resolve)
    assert before.size_bytes == units.MIB
    os.utime(place / "allowed" / "base.qcow2", ns=(1, 1))
    assert image.inspect(qcow2(place / "allowed" / "top.qcow2"), resolve).stamp != before.stamp


@pytest.mark.parametrize(
    "name",
    [
        "{place}/private/secret.raw",
        "../private/secret.raw",
        "link.raw",
        "up/private/secret.raw",
        'json:{{"driver":"file","filename":"{place}/private/secret.raw"}}',
        "nbd:unix:{place}/nbd.sock",
        "file:{place}/private/secret.raw",
    ],
)
def test_a_backing_file_outside_allowed_places_is_denied(
    place: Path, resolve: Callable[[str], Path], name: str
) -> None:
    (place / "allowed" / "link.raw").symlink_to(place / "private" / "secret.raw")
    (place / "allowed" / "up").symlink_to("..")
    path = create(place / "allowed" / "top.qcow2", "-u", "-b", name.format(place=place), "-F", RAW)
    with pytest.raises(Denied) as caught:
        image.inspect(qcow2(path), resolve)
    assert caught.value.kind == "path-not-allowed"


def test_a_forbidden_file_deep_in_the_chain_is_denied(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    secret = str(place / "private" / "secret.raw")
    create(place / "allowed" / "middle.qcow2", "-b", secret, "-F", RAW)
    top = create(place / "allowed" / "top.qcow2", "-b", "middle.qcow2", "-F", "qcow2", size=None)
    with pytest.raises(Denied):
        image.inspect(qcow2(top), resolve)


def test_a_data_file_outside_allowed_places_is_denied(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    top = create(place / "allowed" / "top.qcow2", "-o", f"data_file={place}/private/data.raw")
    with pytest.raises(Denied):
        image.inspect(qcow2(top), resolve)
    fine = create(place / "allowed" / "fine.qcow2", "-o", f"data_file={place}/allowed/data.raw")
    found = image.inspect(qcow2(fine), resolve)
    assert found.size_bytes == 64 * units.KIB
    os.utime(place / "allowed" / "data.raw", ns=(1, 1))
    assert image.inspect(qcow2(fine), resolve).stamp != found.stamp
    assert served(fine, QCOW2, resolve) == bytes(512)


def test_a_data_file_is_not_looked_for_wherever_the_server_was_started(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    path = create(place / "allowed" / "disk.qcow2", "-o", "data_file=data.raw")
    with pytest.raises(Invalid, match="without a folder"):
        image.inspect(qcow2(path), resolve)


def test_a_backing_file_without_a_format_is_not_probed(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    (place / "allowed" / "base.raw").write_bytes(bytes(64 * units.KIB))
    top = create(place / "allowed" / "top.qcow2", "-b", "base.raw", "-F", RAW)
    content = bytearray(top.read_bytes())
    at = content.index(bytes.fromhex("e2792aca"))  # the header's extension with the format
    content[at : at + 4] = bytes.fromhex("11111111")  # one that QEMU does not know and skips
    top.write_bytes(content)
    with pytest.raises(Invalid) as caught:
        image.inspect(qcow2(top), resolve)
    assert caught.value.kind == "image-format-unclear"


def test_a_chain_that_bites_its_tail_ends(place: Path, resolve: Callable[[str], Path]) -> None:
    one, two = place / "allowed" / "one.qcow2", place / "allowed" / "two.qcow2"
    create(one, "-u", "-b", "two.qcow2", "-F", "qcow2")
    create(two, "-u", "-b", "one.qcow2", "-F", "qcow2")
    own = create(place / "allowed" / "own.qcow2", "-u", "-b", "own.qcow2", "-F", "qcow2")
    for path in (one, own):
        with pytest.raises(Invalid) as caught:
            image.inspect(qcow2(path), resolve)
        assert caught.value.kind == "image-broken"


def test_an_image_that_a_vm_writes_is_in_use(place: Path, resolve: Callable[[str], Path]) -> None:
    path = create(place / "allowed" / "disk.qcow2")
    with (
        process.serve_image(path, image_format=QCOW2, writable=True),
        pytest.raises(Conflict) as caught,
    ):
        image.inspect(qcow2(path), resolve)
    assert caught.value.kind == "image-in-use"


# Files that are swapped between the look at them and their use.


def served(path: Path, image_format: str, resolve: Callable[[str], Path]) -> bytes:
    with (
        process.serve_image(path, image_format=image_format, allow=resolve) as address,
        Client.connect(address) as client,
    ):
        return bytes(client.read(0, 512))


def test_a_backing_file_swapped_in_after_the_look_is_never_served(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    path = create(place / "allowed" / "top.qcow2")
    found = image.inspect(qcow2(path), resolve)
    assert served(found.path, QCOW2, resolve) == bytes(512)
    create(path, "-b", str(place / "private" / "secret.raw"), "-F", RAW)
    with (
        process.serve_image(found.path, image_format=QCOW2) as address,
        Client.connect(address) as client,
    ):
        assert client.read(0, 512) == SECRET[:512], "the attack works unless we look"
    with pytest.raises(Denied):
        served(found.path, QCOW2, resolve)


def test_a_data_file_swapped_in_after_the_look_is_never_served(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    path = create(place / "allowed" / "top.qcow2")
    found = image.inspect(qcow2(path), resolve)
    create(path, "-o", f"data_file={place}/private/data.raw")
    with pytest.raises(Denied):
        served(found.path, QCOW2, resolve)


def test_a_link_swapped_in_after_the_look_is_never_served(
    place: Path, resolve: Callable[[str], Path]
) -> None:
    path = place / "allowed" / "disk.raw"
    path.write_bytes(bytes(len(SECRET)))
    found = image.inspect(raw(path), resolve)
    path.unlink()
    path.symlink_to(place / "private" / "secret.raw")
    with pytest.raises(Denied):
        served(found.path, RAW, resolve)


@pytest.mark.parametrize("change", ["gone", "longer", "denied"])
def test_an_image_that_changed_since_the_snapshot_is_an_error(
    place: Path, resolve: Callable[[str], Path], change: str
) -> None:
    path = place / "allowed" / "disk.raw"
    path.write_bytes(bytes(4096))
    source = ImageSource({"vms": [{"name": "vm", "disks": [str(path)]}]}, resolve)
    vm = source.list_vms()[0]
    snapshot = source.take_snapshot(SnapshotRequest(vm.uuid, "job-1", (DiskRequest(KEY, "l"),)))
    assert not source.was_written(snapshot.reference, KEY)
    path.unlink()
    if change == "longer":
        path.write_bytes(bytes(8192))
    elif change == "denied":
        path.symlink_to(place / "private" / "secret.raw")
    with pytest.raises(SendenseError) as caught, source.open_disk(snapshot.reference, KEY):
        pass
    kinds = {"gone": "image-missing", "longer": "snapshot-lost", "denied": "path-not-allowed"}
    assert caught.value.kind == kinds[change]
    assert source.was_written(snapshot.reference, KEY)
