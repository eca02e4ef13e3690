import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sendense.core.errors import Conflict, Denied, Invalid, SendenseError, Unavailable
from sendense.core.ids import SystemIds
from sendense.hub.keyfile import FILE_NAME, SYSTEMD_NAME, KeyPlaces

HEX = "ab" * 32
OTHER = "cd" * 32
MAKER = """
import sys
from pathlib import Path
from sendense.core.ids import SystemIds
from sendense.hub.keyfile import KeyPlaces
print("ready", flush=True)
sys.stdin.readline()
print(KeyPlaces(Path(sys.argv[1]), SystemIds()).read_or_make().secret.value.hex())
"""


def put(path: Path, text: str = HEX + "\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def places(folder: Path, **changes: object) -> KeyPlaces:
    return KeyPlaces(folder, SystemIds(), **changes)  # type: ignore[arg-type] # each test's own


def test_a_key_is_made_at_first_need_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = places(tmp_path / "data").read_or_make()
    finally:
        os.umask(before)
    path = tmp_path / "data" / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [FILE_NAME], "nothing hidden is left"
    assert places(tmp_path / "data").read_or_make().secret.value == made.secret.value
    assert len(made.secret.value) == 32
    assert made.place == str(path)


def test_reading_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(Conflict) as caught:
        places(tmp_path).read()
    assert caught.value.kind == "credentials-key-missing"
    assert "openssl rand -hex 32" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_a_setting_names_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="does not exist"):
        places(tmp_path, file=tmp_path / "mine").read_or_make()
    assert list(tmp_path.iterdir()) == []


def test_the_first_place_counts(tmp_path: Path) -> None:
    systemd = tmp_path / "credentials"
    systemd.mkdir()
    given = {"given": OTHER, "file": put(tmp_path / "named", "12" * 32), "systemd": systemd}
    assert places(tmp_path, **given).read().secret.value.hex() == OTHER
    put(systemd / SYSTEMD_NAME, mode=0o440)
    assert places(tmp_path, **given).read().secret.value.hex() == HEX
    assert places(tmp_path, file=given["file"]).read().secret.value.hex() == "12" * 32
    put(tmp_path / FILE_NAME, "34" * 32)
    assert places(tmp_path).read().secret.value.hex() == "34" * 32


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = put(tmp_path / FILE_NAME, mode=mode)
    for read in (places(tmp_path).read, places(tmp_path).read_or_make):
        with pytest.raises(Denied) as caught:
            read()
        assert caught.value.kind == "credentials-key-exposed"
        assert f"chmod 0600 {path}" in caught.value.hint
    assert path.read_text() == HEX + "\n"


def test_a_key_of_systemd_s_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    put(tmp_path / SYSTEMD_NAME, mode=0o444)
    with pytest.raises(Denied, match="0444"):
        places(tmp_path, systemd=tmp_path).read()


@pytest.mark.parametrize("text", ["", "abab", HEX + "ab", "xy" * 32, HEX + "\n" + OTHER, "\0" * 64])
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    put(tmp_path / FILE_NAME, text)
    given = [places(tmp_path), *([places(tmp_path, given=text)] if text else [])]
    for one in given:
        with pytest.raises(Invalid) as caught:
            one.read_or_make()
        assert caught.value.kind == "credentials-key-invalid"
        assert not text or text not in f"{caught.value}{caught.value.hint}"
    assert (tmp_path / FILE_NAME).read_text() == text


def test_a_place_that_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME, 0o600)
    with pytest.raises(Invalid, match="not a file"):
        places(tmp_path).read()
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir(mode=0o700)
    with pytest.raises(SendenseError):
        places(tmp_path).read_or_make()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(Unavailable) as caught:
        places(tmp_path / "data" / "below").read_or_make()
    assert caught.value.kind in {"credentials-key-unwritable", "credentials-key-unreadable"}


def test_no_repr_shows_a_key(tmp_path: Path) -> None:
    assert HEX not in repr(places(tmp_path, given=HEX))


def test_of_many_that_make_a_key_all_use_the_same(tmp_path: Path) -> None:
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for one in makers:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in makers:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    keys = {one.communicate(timeout=60)[0].strip() for one in makers}
    assert len(keys) == 1
    assert keys == {(tmp_path / FILE_NAME).read_text().strip()}
    assert [one.name for one in tmp_path.iterdir()] == [FILE_NAME]
