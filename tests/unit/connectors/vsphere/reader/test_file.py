"""The reader for development, over nbdkit's real file plugin, and pretended nbdkits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sendense.connectors.vsphere.reader import nbdkit
from sendense.connectors.vsphere.reader.base import ReadTask
from sendense.connectors.vsphere.reader.file import FileReader
from sendense.connectors.vsphere.reader.vddk import VddkReader, make_thumbprint
from sendense.core.errors import Invalid, SendenseError, Unavailable
from sendense.core.units import SECTOR
from sendense.nbd.client import Client
from tests.unit.connectors.vsphere.reader.conftest import PASSWORD, SIZE_BYTES, TASK


@pytest.fixture
def folder(tmp_path: Path, disk: Path) -> Path:
    place = tmp_path / "files"
    (place / "snapshot-21").mkdir(parents=True)
    disk.rename(place / "snapshot-21" / "2000.raw")
    return place


def refuse(reader: FileReader | VddkReader, task: ReadTask = TASK) -> SendenseError:
    with pytest.raises(SendenseError) as caught, reader.open(task):
        pass
    return caught.value


def test_a_file_stands_for_a_disk_of_a_snapshot(folder: Path) -> None:
    reader = FileReader(folder)
    with reader.open(TASK) as address, Client.connect(address) as client:
        assert client.is_read_only
        assert client.read(0, SIZE_BYTES) == (folder / "snapshot-21" / "2000.raw").read_bytes()


def test_a_file_of_a_powered_off_vm_is_written(folder: Path) -> None:
    (folder / "vm-16").mkdir()
    path = folder / "vm-16" / "2000.raw"
    path.write_bytes(bytes(SIZE_BYTES))
    task = replace(TASK, snapshot_moref=None, writable=True)
    with FileReader(folder).open(task) as address, Client.connect(address) as client:
        client.write(0, b"z" * SECTOR)
        client.flush()
    assert path.read_bytes()[: SECTOR + 1] == b"z" * SECTOR + b"\0"


def test_the_reader_for_development_is_labelled(folder: Path) -> None:
    reader = FileReader(folder)
    assert reader.name == "file"
    assert "development only" in str(reader.warning)
    assert str(folder) in reader.probe()
    with pytest.raises(Invalid):
        FileReader(folder / "nowhere").probe()


def test_missing_files_and_names_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    reader = FileReader(folder)
    assert refuse(reader, replace(TASK, key=2001)).kind == "snapshot-lost"
    assert refuse(reader, replace(TASK, snapshot_moref=None)).kind == "disk-unknown"
    assert refuse(reader, replace(TASK, snapshot_moref="../x")).kind == "vm-gone"
    (tmp_path / "secret.raw").write_bytes(bytes(SIZE_BYTES))
    (folder / "snapshot-21" / "2002.raw").symlink_to(tmp_path / "secret.raw")
    assert refuse(reader, replace(TASK, key=2002)).kind == "path-not-allowed"
    assert refuse(reader, replace(TASK, size_bytes=SECTOR)).kind == "disk-changed"


def test_a_machine_without_nbdkit_is_told_so(
    folder: Path, bare_reader: VddkReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert refuse(FileReader(folder)).kind == "program-missing"
    for reader in (FileReader(folder), bare_reader):
        with pytest.raises(Unavailable) as caught:
            reader.probe()
        assert caught.value.kind == "program-missing"


def test_a_missing_plugin_is_told(
    bare_reader: VddkReader, pretend: Callable[[str], None], tmp_path: Path
) -> None:
    said = "nbdkit: error: cannot open plugin 'vddk': x.so: cannot open shared object file"
    pretend(
        'if [ "$1" = --version ]; then echo nbdkit 1.32.5; exit; fi\n'
        f'printf "%s " "$@" >> {tmp_path}/argv; echo "{said}" >&2; exit 1'
    )
    assert refuse(bare_reader).kind == "vddk-plugin-missing"
    with pytest.raises(Unavailable) as caught:
        bare_reader.probe()
    assert caught.value.kind == "vddk-plugin-missing"
    arguments = (tmp_path / "argv").read_text()
    assert PASSWORD not in arguments
    assert "--foreground --exit-with-parent" in arguments
    assert "password=-" in arguments


def test_an_nbdkit_that_never_listens_is_given_up(
    bare_reader: VddkReader, pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbdkit, "LISTEN_SECONDS_MAX", 0.3)
    pretend("exec sleep 60")
    assert refuse(bare_reader).kind == "source-silent"


def test_a_password_that_nbdkit_cannot_take_is_refused(bare_reader: VddkReader) -> None:
    for password in ("a\nb", "x" * nbdkit.SECRET_BYTES_MAX):
        error = refuse(bare_reader, replace(TASK, password=password))
        assert error.kind == "source-config-invalid"
        assert password not in str(error)


def test_a_thumbprint_is_sha_1_in_pairs() -> None:
    assert make_thumbprint(b"abc").startswith("A9:99:3E:36")
    assert len(make_thumbprint(b"").split(":")) == 20
