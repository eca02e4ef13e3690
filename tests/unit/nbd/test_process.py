"""Running qemu-nbd when something is in the way: it is missing, hangs, ends, or may not read."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sendense.core.errors import SendenseError, Unavailable
from sendense.nbd import process
from tests.identity import nobody

WAIT_SECONDS = 20.0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in the place of qemu-nbd."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "qemu-nbd"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


def refuse(path: Path, **how: object) -> SendenseError:
    options = {"image_format": "raw", **how}
    with pytest.raises(SendenseError) as caught, process.serve_image(path, **options):  # type: ignore[arg-type]
        pass
    return caught.value


def test_a_machine_without_qemu_nbd_is_told_what_to_install(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    error = refuse(image)
    assert (error.kind, error.hint) == ("program-missing", "install qemu-utils")


def test_a_qemu_nbd_that_hangs_is_ended_although_it_does_not_want_to(
    image: Path,
    pretend: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(process, "START_SECONDS_MAX", 0.5)
    monkeypatch.setattr(process, "STOP_SECONDS_MAX", 0.2)
    pretend(f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done")
    assert refuse(image).kind == "source-silent"
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_a_qemu_nbd_that_listens_but_never_greets_is_given_up(
    image: Path, pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START_SECONDS_MAX", 0.5)
    program = (
        "import socket, sys; path = [a for a in sys.argv if a.startswith('--socket=')][0][9:]; "
        "s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(); "
        "kept = [s.accept() for _ in range(1000)]"
    )
    pretend(f'exec python3 -c "{program}" "$@"')
    assert refuse(image).kind == "source-silent"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("", "image-broken"),
        ("Failed to open: No such file or directory", "image-missing"),
        ("Could not open: Permission denied", "image-denied"),
        ('Failed to get "write" lock', "image-in-use"),
        ('Failed to get shared "write" lock', "image-in-use"),
        ("Image is corrupt", "image-broken"),
    ],
)
def test_what_qemu_nbd_says_at_its_end_becomes_a_kind(
    image: Path, pretend: Callable[[str], None], said: str, kind: str
) -> None:
    pretend(f"echo '{said}' >&2; exit 1")
    assert refuse(image).kind == kind


def test_an_image_that_may_not_be_read_is_said_to_be_so(image: Path) -> None:
    image.chmod(0)
    with nobody():
        assert refuse(image).kind == "image-denied"


def test_an_image_that_another_reads_is_not_written(image: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    with process.serve_image(image, image_format="qcow2"):
        assert refuse(image, image_format="qcow2", writable=True).kind == "image-in-use"


def test_an_image_replaced_while_it_is_opened_is_not_served(
    image: Path, pretend: Callable[[str], None]
) -> None:
    # The program is given the old file, of which only the descriptor is left.
    real = shutil.which("qemu-nbd")
    pretend(f"exec 9<{image}; rm {image}; echo > {image}; truncate -s 4096 {image}\nexec {real} $@")
    error = refuse(image, allow=lambda _: None)
    assert error.kind == "snapshot-lost"
    with process.serve_image(image, image_format="raw"):
        pass  # nobody asks which files those are


def test_a_process_that_is_gone_has_nothing_open(image: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(WAIT_SECONDS)
    with pytest.raises(Unavailable, match="ended while it opened"):
        process._list_opened(ended.pid, image)
