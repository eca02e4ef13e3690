"""What a qcow2 header names is read by ourselves, before QEMU sees the image."""

import io
import json
import os
import struct
import subprocess
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sendense.connectors.image import header, image
from sendense.connectors.image.config import QCOW2, ImageDisk
from sendense.connectors.image.header import Header
from sendense.core import units
from sendense.core.errors import Invalid, SendenseError

END, BACKING_FORMAT, DATA_FILE, FEATURE_NAMES = 0, 0xE2792ACA, 0x44415441, 0x6803F857
DATA_FILE_BIT = 1 << 2
MEMORY_BYTES_MAX = 256 * units.KIB


def extension(kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def make(
    *extensions: bytes,
    version: int = 3,
    bits: int = 16,
    backing: bytes = b"",
    features: int = 0,
    length: int = 104,
    crypt: int = 0,
) -> bytes:
    """Make the first cluster of an image, as the specification lays it out."""
    head_bytes = length if version == 3 else 72
    extra = b"".join(extensions)
    backing_at = head_bytes + len(extra) if backing else 0
    head = struct.pack(
        *(">4sIQIIQI", b"QFI\xfb", version, backing_at, len(backing), bits, units.MIB, crypt)
    )
    head = head.ljust(72, b"\0")
    if version == 3:
        head += struct.pack(">QQQII", features, 0, 0, 4, length)
    content = head.ljust(head_bytes, b"\0") + extra + backing
    return content.ljust(1 << max(bits, 9) if bits < 22 else 512, b"\0")


@contextmanager
def opened(content: bytes) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file


def read(content: bytes) -> Header:
    with opened(content) as file:
        return header.read(file, "disk.qcow2")


RAW_FORMAT = extension(BACKING_FORMAT, b"raw")
DATA = extension(DATA_FILE, b"/images/data.raw")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (make(), Header()),
        (make(version=2), Header()),
        (make(bits=9, length=112), Header()),
        (make(RAW_FORMAT, extension(END), backing=b"a/b.raw"), Header("a/b.raw", "raw")),
        (make(RAW_FORMAT, backing=b"b.raw", version=2), Header("b.raw", "raw")),
        (make(backing=b"b" * 1023), Header("b" * 1023)),
        (make(DATA, features=DATA_FILE_BIT), Header(data_file="/images/data.raw")),
        # Told although no feature asks for it: another reader might look.
        (make(DATA), Header(data_file="/images/data.raw")),
        # What follows the end, or another type, is no name.
        (make(extension(END), DATA), Header()),
        (make(extension(FEATURE_NAMES, b"x" * 100), RAW_FORMAT), Header(None, "raw")),
        (make(*[extension(9)] * 62, RAW_FORMAT), Header(None, "raw")),
        (make(backing="ä.raw".encode()), Header("ä.raw")),
    ],
)
def test_names_are_read_as_the_specification_places_them(content: bytes, expected: Header) -> None:
    assert read(content) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends within its header, at 0"),
        (make()[:71], "at 71"),
        (make()[:103], "at 103"),
        (b"QFI\xfc" + make()[4:], "no qcow2 image"),
        (make(version=1), "version 1"),
        (make(version=4), "version 4"),
        (make(bits=8), "clusters of 2\\^8"),
        (make(bits=22), "clusters of 2\\^22"),
        (make(crypt=1), "encrypted"),
        (make(crypt=2), "encrypted"),
        (make(length=96), "header of 96 bytes"),
        (make(bits=9, length=520), "header of 520 bytes"),
        (make(features=1 << 5), "features that are not known: 0x20"),
        (make(features=1 << 63), "features that are not known"),
        (make(features=DATA_FILE_BIT), "does not name its data file"),
        (make(DATA, DATA, features=DATA_FILE_BIT), "odd way"),
        (make(RAW_FORMAT, extension(BACKING_FORMAT, b"qcow2")), "odd way"),
        (make(extension(DATA_FILE)), "odd way"),
        (make(extension(DATA_FILE, b"x" * 4096)), "odd way"),
        (make(extension(BACKING_FORMAT, b"x" * 16)), "odd way"),
        (make(extension(DATA_FILE, b"/a\0/b")), "no text"),
        (make(extension(DATA_FILE, b"/\xff")), "no text"),
        (make(backing=b"/a\0b"), "no text"),
        (make(backing=b"b" * 1024), "name of 1024 bytes"),
        (make(struct.pack(">II", 9, 1 << 31)), "extension of 2147483648 bytes"),
        (make(*[extension(9)] * 64), "more than 64"),
        # Who reads on into the backing file's name finds a data file.
        (make(struct.pack(">I", DATA_FILE), backing=b"\0\0\0\x08/secrets"), "within an extension"),
        (make()[:8] + struct.pack(">QI", 50, 4) + make()[20:], "at 50, outside"),
        (make()[:8] + struct.pack(">QI", 1 << 63, 4) + make()[20:], "outside"),
        (make(bits=9)[:8] + struct.pack(">QI", 510, 4) + make(bits=9)[20:], "name of 4 bytes"),
    ],
)
def test_a_header_that_is_odd_is_refused_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match=reason) as caught:
        read(content)
    assert caught.value.kind == "image-broken"
    assert "disk.qcow2" in caught.value.message


@settings(max_examples=300)
@given(
    content=st.binary(max_size=512),
    edits=st.lists(st.tuples(st.integers(0, 250), st.binary(min_size=1, max_size=8)), max_size=6),
    version=st.sampled_from([2, 3]),
    backing=st.binary(max_size=40),
    features=st.sampled_from([0, DATA_FILE_BIT, 1, 3 << 3]),
)
def test_no_header_gets_anything_but_our_error_or_much_memory(
    content: bytes,
    edits: list[tuple[int, bytes]],
    version: int,
    backing: bytes,
    features: int,
) -> None:
    hostile = bytearray(
        make(DATA, RAW_FORMAT, backing=backing, version=version, features=features, bits=12)
    )
    hostile[300 : 300 + len(content)] = content
    for offset, data in edits:
        hostile[offset : offset + len(data)] = data
    for attempt in (content, bytes(hostile)):
        with opened(attempt) as file:
            tracemalloc.start()
            try:
                found = header.read(file, "disk.qcow2")
            except SendenseError:
                continue
            finally:
                _, most = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                assert most < MEMORY_BYTES_MAX
            names = [found.backing_file, found.backing_format, found.data_file]
            assert all(name and "\0" not in name for name in names if name is not None)


@settings(max_examples=40)
@given(
    edits=st.lists(st.tuples(st.integers(8, 200), st.binary(min_size=1, max_size=4)), max_size=3),
    backing=st.sampled_from([b"", b"base.raw"]),
    data_files=st.sampled_from([[], [DATA]]),
)
def test_qemu_sees_no_name_that_we_did_not(
    edits: list[tuple[int, bytes]], backing: bytes, data_files: list[bytes]
) -> None:
    extensions = [*data_files, RAW_FORMAT]
    features = DATA_FILE_BIT if data_files else 0
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "disk.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"]
        subprocess.run(create, check=True)
        hostile = bytearray(path.read_bytes())
        made = make(*extensions, backing=backing, features=features)[:256]
        made = made[:36] + bytes(hostile[36:72]) + made[72:]  # where QEMU finds its tables
        hostile[:256] = made
        for offset, data in edits:
            hostile[offset : offset + len(data)] = data
        path.write_bytes(hostile)
        command = ["qemu-img", "info", "--output=json", "--format=qcow2", str(path)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        if done.returncode:
            return
        told = json.loads(done.stdout)
        with path.open("rb") as file:
            try:
                found = header.read(file, str(path))
            except SendenseError:
                return  # stricter is fine
        assert told.get("backing-filename") == found.backing_file
        told_data = told.get("format-specific", {}).get("data", {}).get("data-file")
        assert told_data in {None, found.data_file}


# QEMU is never started for what is refused.


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once anything runs qemu-img."""
    mark = tmp_path / "started"
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return mark


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def disk_in(folder: Path) -> ImageDisk:
    return ImageDisk(str(folder / "disk.qcow2"), QCOW2, stated=True)


def only_within(folder: Path) -> Callable[[str], Path]:
    def resolve(path: str) -> Path:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(folder):
            raise Invalid(f"{path} is not allowed")
        return real

    return resolve


@pytest.mark.parametrize(
    "content",
    [
        make(features=1 << 40),
        make(backing=b"/etc/hostname"),
        make(RAW_FORMAT, backing=b"/etc/hostname"),
        make(RAW_FORMAT, backing=b"../outside.raw"),
        make(RAW_FORMAT, backing=b"fifo"),
        make(RAW_FORMAT, backing=b"folder"),
        make(RAW_FORMAT, backing=b"missing"),
        make(RAW_FORMAT, backing=b"nbd:localhost:10809"),
        make(RAW_FORMAT, backing=b'json:{"driver":"host_device","filename":"/dev/sda"}'),
        make(extension(BACKING_FORMAT, b"qcow2"), backing=b"nested.qcow2"),
        make(extension(BACKING_FORMAT, b"vmdk"), backing=b"nested.qcow2"),
        make(extension(DATA_FILE, b"/proc/self/cwd/fifo"), features=DATA_FILE_BIT),
        make(extension(DATA_FILE, b"/proc/self/cwd/fifo")),
        make(extension(DATA_FILE, b"/proc/self/cwd/missing")),
        make(extension(DATA_FILE, b"fifo"), features=DATA_FILE_BIT),
        make(extension(DATA_FILE, b"/etc/hostname"), features=DATA_FILE_BIT),
        make(extension(DATA_FILE, b"nbd:unix:/run/x"), features=DATA_FILE_BIT),
        make(extension(DATA_FILE, b'json:{"driver":"nbd"}'), features=DATA_FILE_BIT),
    ],
)
def test_qemu_never_sees_an_image_whose_header_is_refused(
    content: bytes, images: Path, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)  # what /proc/self/cwd stands for
    os.mkfifo(images / "fifo")
    (images / "folder").mkdir()
    nested = make(extension(DATA_FILE, b"json:{}"), features=DATA_FILE_BIT)
    (images / "nested.qcow2").write_bytes(nested)
    (images.parent / "outside.raw").write_bytes(bytes(512))
    (images / "disk.qcow2").write_bytes(content)
    with pytest.raises(SendenseError):
        image.inspect(disk_in(images), only_within(images))
    assert not started.exists()


def test_qemu_sees_an_image_whose_header_is_fine(images: Path, started: Path) -> None:
    (images / "base.raw").write_bytes(bytes(512))
    (images / "disk.qcow2").write_bytes(make(RAW_FORMAT, backing=b"base.raw"))
    with pytest.raises(Invalid, match="cannot be opened"):
        image.inspect(disk_in(images), only_within(images))
    assert started.exists()


def test_a_pipe_that_takes_the_place_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    os.mkfifo(path)
    with pytest.raises(Invalid, match="neither a file"), image._open(path) as file:
        assert isinstance(file, io.BufferedReader)
