"""Our NBD client against the servers it will meet, healthy and failing."""

import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sendense.core import units
from sendense.core.errors import Denied, Invalid, NotFound, SendenseError, Unavailable
from sendense.core.extent import Extent
from sendense.nbd import process
from sendense.nbd.address import Address
from sendense.nbd.client import Client, list_exports
from sendense.nbd.protocol import ALLOCATION

SIZES = [512, 512 * 3, units.MIB, units.MIB + 512, 5 * units.MIB - 512]
WAIT_SECONDS = 20.0


@contextmanager
def nbdkit(folder: Path, *arguments: str) -> Iterator[Address]:
    """Run nbdkit with a plugin and filters on a unix socket."""
    path, ready = folder / "nbdkit.sock", folder / "nbdkit.pid"
    for left in (path, ready):
        left.unlink(missing_ok=True)
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", str(path)]
    command += ["--pidfile", str(ready), *arguments]  # the socket exists before it listens
    with (folder / "nbdkit.log").open("wb") as log:
        server = subprocess.Popen(command, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not ready.exists():
            assert server.poll() is None, (folder / "nbdkit.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield Address(socket_path=str(path))
    finally:
        server.terminate()
        server.wait(WAIT_SECONDS)


@contextmanager
def qemu_nbd(image: Path) -> Iterator[Address]:
    with process.serve_image(image, image_format="raw") as address:
        yield address


@contextmanager
def serve(kind: str, image: Path) -> Iterator[Address]:
    """Serve an image by one of the servers."""
    if kind == "qemu-nbd":
        with qemu_nbd(image) as address:
            yield address
    else:
        with nbdkit(image.parent, "--readonly", "file", str(image)) as address:
            yield address


@pytest.fixture(params=["qemu-nbd", "nbdkit"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_image(folder: Path, content: bytes) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(content)
    return path


def requests(size: int, unit: int) -> list[tuple[int, int]]:
    return [(start, min(unit, size - start)) for start in range(0, size, unit)]


def read_all(client: Client, *, unit: int, depth: int) -> bytes:
    parts = dict(client.read_many(requests(client.size_bytes, unit), depth=depth))
    return b"".join(bytes(parts[start]) for start in sorted(parts))


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_arrives_whatever_the_size(kind: str, size: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    with (
        serve(kind, make_image(tmp_path, content)) as address,
        Client.connect(address) as client,
    ):
        assert client.size_bytes == size
        assert client.is_read_only
        assert read_all(client, unit=256 * units.KIB, depth=8) == content
        assert bytes(client.read(size - 512, 512)) == content[-512:]


def test_requests_may_come_and_go_in_any_order(kind: str, tmp_path: Path) -> None:
    chooser = random.Random(1)
    content = chooser.randbytes(3 * units.MIB)
    wanted = [(start, 512) for start in range(0, len(content), 4096)]
    chooser.shuffle(wanted)
    with (
        serve(kind, make_image(tmp_path, content)) as address,
        Client.connect(address) as client,
    ):
        for start, data in client.read_many(wanted, depth=16):
            assert bytes(data) == content[start : start + 512]


def test_what_was_asked_for_comes_into_memory_that_was_used_before(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense.nbd.client.ASKED_MAX", 3)
    path = tmp_path / "disk.raw"
    content = bytearray(2 * units.MIB)
    content[units.MIB :] = random.Random(2).randbytes(units.MIB)
    with path.open("wb") as file:
        file.truncate(len(content))
        file.seek(units.MIB)
        file.write(content[units.MIB :])
    used = memoryview(bytearray(b"x" * len(content)))
    odd = memoryview(bytearray(1000))  # no server's block
    with serve(kind, path) as address, Client.connect(address) as client:
        for _ in range(2):
            client.ask(
                (start, used[start : start + length])
                for start, length in requests(len(content), 128 * units.KIB)
            )
            client.receive()
            assert used == content
            client.ask([(units.MIB + 7, odd)])
            client.receive()
            assert odd == content[units.MIB + 7 : units.MIB + 1007]


def test_holes_are_told_and_data_is_not_taken_for_zero(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(8 * units.MIB)
        file.seek(3 * units.MIB)
        file.write(b"x" * units.MIB)
    with (
        serve(kind, path) as address,
        Client.connect(address, contexts=[ALLOCATION]) as client,
    ):
        extents = list(client.list_allocated())
        check_cover(extents, 8 * units.MIB)
        data = [one for one in extents if not one.zero]
        assert sum(one.length for one in data) <= 2 * units.MIB
        assert any(one.start <= 3 * units.MIB and one.end >= 4 * units.MIB for one in merged(data))


def merged(extents: Sequence[Extent]) -> list[Extent]:
    joined: list[Extent] = []
    for one in extents:
        if joined and joined[-1].end == one.start:
            joined[-1] = Extent(joined[-1].start, joined[-1].length + one.length)
        else:
            joined.append(one)
    return joined


def check_cover(extents: Sequence[Extent], size: int) -> None:
    position = 0
    for one in extents:
        assert one.start == position
        position = one.end
    assert position == size


def test_a_disk_above_two_tebibytes_is_listed_and_read(kind: str, tmp_path: Path) -> None:
    size = 3 * units.TIB + 512
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size - 512)
        file.write(b"e" * 512)
    with (
        serve(kind, path) as address,
        Client.connect(address, contexts=[ALLOCATION]) as client,
    ):
        check_cover(list(client.list_allocated()), size)
        assert bytes(client.read(size - 512, 512)) == b"e" * 512


def test_a_server_that_only_takes_whole_blocks_gets_whole_blocks(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(units.MIB)
    path = make_image(tmp_path, content)
    policy = ["blocksize-minimum=4096", "blocksize-error-policy=error"]
    with (
        nbdkit(tmp_path, "--filter=blocksize-policy", "file", str(path), *policy) as address,
        Client.connect(address, contexts=[ALLOCATION]) as client,
    ):
        assert client.block_size_min == 4096
        wanted = [(512, 512), (4000, 200), (0, 8192), (len(content) - 1, 1)]
        for start, data in client.read_many(wanted, depth=2):
            length = dict(wanted)[start]
            assert bytes(data) == content[start : start + length]
        listed = list(client.list_extents(ALLOCATION, start=5000, end=9000))
        assert listed[0][0] == 5000
        assert sum(length for _, length, _ in listed) == 4000
        with pytest.raises(Invalid) as caught:
            client.write(512, b"x" * 512)
        assert caught.value.kind == "nbd-out-of-range"
        with pytest.raises(Invalid):
            client.trim(0, 100)
    assert path.read_bytes() == content


def test_a_server_that_takes_little_at_once_is_asked_in_parts(tmp_path: Path) -> None:
    content = random.Random(4).randbytes(3 * units.MIB + 512)
    path = make_image(tmp_path, content)
    policy = ["blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=64K"]
    arguments = ["--filter=blocksize-policy", "file", str(path), *policy]
    with (
        nbdkit(tmp_path, *arguments, "blocksize-error-policy=error") as address,
        Client.connect(address) as client,
    ):
        assert client.block_size_max == 64 * units.KIB
        assert read_all(client, unit=units.MIB, depth=3) == content
        assert bytes(client.read(100, 2 * units.MIB)) == content[100 : 2 * units.MIB + 100]
        assert bytes(client.read(len(content) - 1, 1)) == content[-1:]
        client.write(units.MIB, content[: units.MIB])
    assert path.read_bytes()[units.MIB : 2 * units.MIB] == content[: units.MIB]


def test_without_extents_everything_has_to_be_read(tmp_path: Path) -> None:
    path = make_image(tmp_path, bytes(units.MIB))
    with (
        nbdkit(tmp_path, "--filter=noextents", "file", str(path)) as address,
        Client.connect(address, contexts=[ALLOCATION]) as client,
    ):
        assert [one for one in client.list_allocated() if one.zero] == []
    with (
        nbdkit(tmp_path, "--no-sr", "file", str(path)) as address,
        Client.connect(address, contexts=[ALLOCATION]) as client,
    ):
        assert list(client.list_allocated()) == [Extent(0, units.MIB)]
        assert read_all(client, unit=64 * units.KIB, depth=4) == bytes(units.MIB)


def test_a_context_that_is_not_offered_is_an_error_where_it_is_needed(
    kind: str, tmp_path: Path
) -> None:
    with (
        serve(kind, make_image(tmp_path, bytes(512))) as address,
        Client.connect(address, contexts=["qemu:dirty-bitmap:none", ALLOCATION]) as client,
    ):
        assert client.contexts == {ALLOCATION}
        with pytest.raises(NotFound) as caught:
            next(client.list_extents("qemu:dirty-bitmap:none"))
    assert caught.value.kind == "context-unknown"


def test_an_unknown_export_is_named(tmp_path: Path) -> None:
    path = make_image(tmp_path, bytes(512))
    with qemu_nbd(path) as address:
        assert list_exports(address) == [""]
        wrong = Address(export="nope", socket_path=address.socket_path)
        with pytest.raises(NotFound) as caught:
            Client.connect(wrong)
    assert caught.value.kind == "export-unknown"


def test_an_error_of_the_disk_is_raised_and_not_taken_for_data(tmp_path: Path) -> None:
    path = make_image(tmp_path, b"x" * units.MIB)
    trigger = tmp_path / "broken"
    arguments = ["--filter=error", "file", str(path), "error-pread=EIO", "error-pread-rate=100%"]
    with (
        nbdkit(tmp_path, *arguments, f"error-file={trigger}") as address,
        Client.connect(address) as client,
    ):
        assert bytes(client.read(0, 4096)) == b"x" * 4096
        trigger.touch()
        with pytest.raises(Unavailable) as caught:
            read_all(client, unit=4096, depth=4)
    assert caught.value.kind == "nbd-read-error"


def test_a_disk_that_fails_now_and_then_never_gives_wrong_bytes(tmp_path: Path, seed: int) -> None:
    content = random.Random(seed).randbytes(units.MIB)
    path = make_image(tmp_path, content)
    arguments = ["--filter=error", "file", str(path), "error-pread=EIO", "error-pread-rate=0.1"]
    kinds = set()
    with nbdkit(tmp_path, *arguments) as address:
        for start in range(0, len(content), 16 * units.KIB):
            with Client.connect(address) as client:
                try:
                    # nbdkit 1.32 ends by an assertion when a client leaves replies behind.
                    found = client.read_many(requests(len(content), 4096), depth=1)
                    for at, data in found:
                        assert data == content[at : at + 4096], start
                except Unavailable as error:
                    kinds.add(error.kind)
    assert kinds == {"nbd-read-error"}


def test_a_server_of_a_limited_rate_is_read_to_the_end(tmp_path: Path) -> None:
    content = random.Random(5).randbytes(units.MIB)
    path = make_image(tmp_path, content)
    with (
        nbdkit(tmp_path, "--filter=rate", "file", str(path), "rate=8M") as address,
        Client.connect(address, timeout_seconds=WAIT_SECONDS) as client,
    ):
        assert read_all(client, unit=64 * units.KIB, depth=4) == content


def test_a_slow_server_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    path = make_image(tmp_path, b"x" * 4096)
    with nbdkit(tmp_path, "--filter=delay", "file", str(path), "rdelay=3") as address:
        with Client.connect(address, timeout_seconds=WAIT_SECONDS) as client:
            assert bytes(client.read(0, 4096)) == b"x" * 4096
        impatient = Client.connect(address, timeout_seconds=1.0)
        with impatient, pytest.raises(Unavailable) as caught:
            impatient.read(0, 4096)
    assert caught.value.kind == "nbd-lost"


def test_closing_from_another_thread_wakes_a_reader(tmp_path: Path) -> None:
    path = make_image(tmp_path, b"x" * 4096)
    with nbdkit(tmp_path, "--filter=delay", "file", str(path), "rdelay=30") as address:
        client = Client.connect(address)
        failures: list[SendenseError] = []

        def read() -> None:
            try:
                client.read(0, 4096)
            except SendenseError as error:
                failures.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        while not reader.is_alive():
            time.sleep(0.01)
        time.sleep(0.1)  # lets the request go out; closing before would be as good
        started = time.monotonic()
        client.close()
        reader.join(WAIT_SECONDS)
        assert time.monotonic() - started < 10.0  # the answer would come after 30
        assert [error.kind for error in failures] == ["nbd-closed"]


def test_a_server_that_ends_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = make_image(tmp_path, b"x" * units.MIB)
    flag = tmp_path / "gone"
    arguments = ["--filter=exitwhen", "file", str(path), f"exit-when-file-created={flag}"]
    with nbdkit(tmp_path, *arguments, "exit-when-poll=1") as address:
        with Client.connect(address) as client:
            assert client.read(0, 512)
            flag.touch()
        with pytest.raises(Unavailable) as caught:
            connect_until_it_fails(address)
    assert caught.value.kind in {"nbd-unreachable", "nbd-lost"}


def connect_until_it_fails(address: Address) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        Client.connect(address).close()
        time.sleep(0.05)


def test_a_read_only_export_refuses_to_be_written(tmp_path: Path) -> None:
    path = make_image(tmp_path, bytes(4096))
    with qemu_nbd(path) as address, Client.connect(address) as client, pytest.raises(Denied):
        client.write(0, b"x" * 512)
    assert path.read_bytes() == bytes(4096)


def test_what_is_written_trimmed_and_flushed_is_in_the_file(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(3 * units.MIB)
    path = make_image(tmp_path, content)
    with (
        process.serve_image(path, image_format="raw", writable=True) as address,
        Client.connect(address) as client,
    ):
        assert not client.is_read_only
        client.write(units.MIB, b"n" * 4096)
        client.zero(0, 512 * units.KIB)
        client.flush()
    expected = bytearray(content)
    expected[units.MIB : units.MIB + 4096] = b"n" * 4096
    expected[: 512 * units.KIB] = bytes(512 * units.KIB)
    assert path.read_bytes() == bytes(expected)


def test_an_encrypted_connection_is_trusted_only_with_the_right_certificate(
    tmp_path: Path,
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of this test")
    make_certificate(tmp_path)
    path = make_image(tmp_path, b"x" * 512)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--port", str(port)]
    command += ["--ipaddr", "127.0.0.1", "--tls=require", f"--tls-certificates={tmp_path}"]
    server = subprocess.Popen([*command, "file", str(path)])
    try:
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca-cert.pem"))
        address = Address(host="localhost", port=port)
        with connect_soon(address, trusting) as client:
            assert bytes(client.read(0, 512)) == b"x" * 512
        with pytest.raises(Denied) as caught:
            Client.connect(address, tls=ssl.create_default_context())
        assert caught.value.kind == "nbd-tls"
        with pytest.raises(SendenseError):
            Client.connect(address)
    finally:
        server.terminate()
        server.wait(WAIT_SECONDS)


def connect_soon(address: Address, tls: ssl.SSLContext) -> Client:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return Client.connect(address, tls=tls)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def make_certificate(folder: Path) -> None:
    """Make a certificate for localhost under the names that nbdkit looks for."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", "server-key.pem", "-out", "server-cert.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    shutil.copy(folder / "server-cert.pem", folder / "ca-cert.pem")


def test_an_image_is_not_written_by_two_at_once(tmp_path: Path) -> None:
    path = make_image(tmp_path, bytes(4096))
    with (
        process.serve_image(path, image_format="raw", writable=True),
        pytest.raises(SendenseError) as caught,
        process.serve_image(path, image_format="raw", writable=True),
    ):
        pass
    assert caught.value.kind == "image-in-use"


def test_nothing_is_left_of_a_server_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = make_image(tmp_path, bytes(4096))
    with pytest.raises(SendenseError) as caught, qemu_nbd(tmp_path / "missing.raw"):
        pass
    assert caught.value.kind == "image-missing"
    with pytest.raises(RuntimeError), qemu_nbd(path):
        raise RuntimeError("the body fails")
    assert list(scratch.iterdir()) == []
    found = subprocess.run(["pgrep", "-f", str(path)], capture_output=True, check=False)
    assert found.stdout == b""


def test_the_folder_of_a_killed_process_goes_with_the_next_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    orphan, young, other = (scratch / name for name in ("sendense-nbd-a", "sendense-nbd-b", "c"))
    for folder in (orphan, young, other):
        folder.mkdir(parents=True)
        (folder / "nbd.sock").touch()
    os.utime(orphan, (0, 0))
    os.utime(other, (0, 0))
    path = make_image(tmp_path, bytes(4096))
    with qemu_nbd(path) as first:
        assert first.socket_path is not None
        held = Path(first.socket_path).parent
        os.utime(held, (0, 0))
        with qemu_nbd(path) as second, Client.connect(second), Client.connect(first):
            assert held.exists()
    assert sorted(scratch.iterdir()) == [other, young]


def test_a_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    path = make_image(tmp_path, bytes(4096))
    program = (
        "import sys\nfrom pathlib import Path\nfrom sendense.nbd import process\n"
        "with process.serve_image(Path(sys.argv[1]), image_format='raw') as address:\n"
        "    print(address.socket_path, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdin is not None
    socket_path = Path(owner.stdout.readline().strip())
    assert socket_path.exists()
    owner.kill()
    owner.wait(WAIT_SECONDS)
    owner.stdout.close()
    owner.stdin.close()
    deadline = time.monotonic() + WAIT_SECONDS
    while subprocess.run(["pgrep", "-f", str(path)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "qemu-nbd outlives its owner"
        time.sleep(0.05)
    shutil.rmtree(socket_path.parent, ignore_errors=True)
