"""What becomes of a snapshot whose QEMU has ended."""

from pathlib import Path

import pytest

from sendense.connectors.base import SnapshotOutcome
from sendense.connectors.qemu import names, scratch
from sendense.connectors.qemu.scratch import Scratch
from sendense.connectors.qemu.source import QemuSource

VM = "6f1c6a52-7e0b-4d53-9a5e-3c1f0d9b2a77"


def test_files_of_a_snapshot_cut_off_with_its_qemu_are_found_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "default_root", lambda: tmp_path / "short")
    config = {"vms": [{"name": "gone", "qmp": str(tmp_path / "no.qmp")}]}
    source = QemuSource(config, Path, tmp_path / "scratch")
    assert source.find_snapshot(VM, "job-1") is None
    place = Scratch(tmp_path / "scratch", VM)
    place.prepare()
    # No record of it: it was never finished.
    place.create_fleece(names.token("job-1"), 2000, "nonce", 1 << 20)
    other = place.create_fleece(names.token("job-2"), 2000, "nonce", 1 << 20)
    for name, left in (("job-1", [other]), ("job-2", [])):
        reference = source.find_snapshot(VM, name)
        assert reference is not None
        source.remove_snapshot(reference, SnapshotOutcome.DISCARDED, frozenset())
        assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == left
        assert source.find_snapshot(VM, name) is None
    assert not place.folder.exists()
