"""Keys of repositories on the command line: with no server, and through one."""

import getpass
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.cli import unlocking
from sendense.repository import recipients, recovery
from tests.unit.cli.conftest import Hub, Run

PHRASE = "four words you keep"
NEW = "a new one of mine"
OTHER_KEY = recovery.to_text(bytes(range(32)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in milliseconds, and be nobody's environment."""
    monkeypatch.setattr(recipients, "ITERATIONS", 1)
    monkeypatch.setattr(recipients, "MEMORY_KIB", 64)
    for name in (unlocking.RECOVERY_KEY_VARIABLE, unlocking.PASSPHRASE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def secret(tmp_path: Path) -> "Secret":
    return Secret(tmp_path)


class Secret:
    """Writes files of secrets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, text: str) -> str:
        path = self._folder / f"secret-{len(list(self._folder.iterdir()))}"
        path.write_text(f"{text}\n")
        path.chmod(0o600)
        return str(path)


def _create(run: Run, place: Path, *more: str) -> str:
    made = run("repository", "create", str(place), "--json", *more)
    assert made.code == 0, made.err
    return str(json.loads(made.out)["recovery_key"])


def _type(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let a person at a terminal type lines."""
    left = list(lines)
    monkeypatch.setattr(getpass, "getpass", lambda _prompt: left.pop(0))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)


def test_a_repository_is_made_with_no_server_and_opened_by_its_key(
    run: Run, tmp_path: Path, secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "deep" / "backups"
    key = _create(run, place)
    assert run("repository", "list", str(place)).code == 5
    for option in (["--recovery-key-file", secret.file(key)],):
        assert run("repository", "list", str(place), *option).code == 0
        assert run("repository", "check", str(place), *option).code == 0
        assert run("repository", "stats", str(place), *option).code == 0
    wrong = run("repository", "list", str(place), "--recovery-key-file", secret.file(OTHER_KEY))
    assert (wrong.code, "another repository" in wrong.err) == (5, True)
    monkeypatch.setenv(unlocking.RECOVERY_KEY_VARIABLE, key)
    assert run("repository", "list", str(place)).code == 0
    assert run("repository", "create", str(place)).code == 4


def test_the_key_is_shown_as_text_and_on_a_terminal_as_a_picture(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("repository", "create", str(tmp_path / "a"))
    assert made.code == 0
    assert "  SENDENSE-1-" in made.out
    assert "keep it away from this machine" in made.err
    assert "▀" not in made.out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "▀" in run("repository", "create", str(tmp_path / "b")).out


def test_without_encryption_it_is_said(run: Run, tmp_path: Path) -> None:
    made = run("repository", "create", str(tmp_path / "a"), "--no-encryption")
    assert made.code == 0
    assert "not encrypted" in made.err
    assert run("repository", "list", str(tmp_path / "a")).code == 0


def test_a_passphrase_opens_what_it_was_added_to(
    run: Run, tmp_path: Path, secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "a")
    key = _create(run, Path(place), "--passphrase-file", secret.file(PHRASE))
    assert run("repository", "list", place, "--passphrase-file", secret.file(PHRASE)).code == 0
    wrong = run("repository", "list", place, "--passphrase-file", secret.file(PHRASE + "?"))
    assert wrong.code == 5
    added = run(
        "repository", "key", "add", place, "--label", "office", "--new-passphrase-file",
        secret.file("another one of mine"), "--recovery-key-file", secret.file(key), "--json",
    )  # fmt: skip
    assert added.code == 0, added.err
    listed = json.loads(run("repository", "key", "list", place, "--json").out)
    assert [one["label"] for one in listed["recipients"]] == ["", "office"]
    assert "office" in run("repository", "key", "list", place).out
    monkeypatch.setenv(unlocking.PASSPHRASE_VARIABLE, "another one of mine")
    assert run("repository", "list", place).code == 0
    for one in listed["recipients"]:
        assert run("repository", "key", "remove", place, one["recipient_id"], "--yes").code == 0
    assert run("repository", "list", place).code == 3
    assert "recovery key opens it" in run("repository", "key", "list", place).err
    assert run("repository", "key", "remove", place, "nobody", "--yes", "--json").code == 3


def test_a_person_is_asked_only_where_a_key_is_needed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, plain = str(tmp_path / "a"), str(tmp_path / "b")
    key = _create(run, Path(place))
    assert run("repository", "create", plain, "--no-encryption", "--json").code == 0
    _type(monkeypatch, key.lower(), NEW, NEW, key, NEW)
    assert run("repository", "list", plain).code == 0
    assert run("repository", "list", place).code == 0
    assert run("repository", "key", "add", place).code == 0
    assert run("repository", "list", place).code == 0  # by the passphrase


def test_what_cannot_be_meant_is_refused(
    run: Run, tmp_path: Path, secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, plain = str(tmp_path / "a"), str(tmp_path / "b")
    key = secret.file(_create(run, Path(place)))
    phrase = secret.file(PHRASE)
    assert run("repository", "create", plain, "--no-encryption").code == 0
    both = run("repository", "list", place, "--recovery-key-file", key, "--passphrase-file", phrase)
    assert (both.code, "one of them" in both.err) == (2, True)
    assert run("repository", "list", plain, "--recovery-key-file", key).code == 2
    assert run("repository", "list", plain, "--passphrase-file", phrase).code == 3
    assert run("repository", "key", "add", plain, "--new-passphrase-file", phrase).code == 2
    assert run("repository", "key", "add", place).code == 2  # nobody is here to ask
    short = secret.file("short")
    assert run("repository", "create", str(tmp_path / "c"), "--passphrase-file", short).code == 2
    assert not (tmp_path / "c").exists()
    assert run("repository", "list", str(tmp_path / "nowhere") + "/").code == 3
    _type(monkeypatch, NEW, "another than that")
    assert run("repository", "key", "add", place).code == 2


def test_damaged_wraps_are_told(run: Run, tmp_path: Path, secret: Secret) -> None:
    place = tmp_path / "a"
    _create(run, place, "--passphrase-file", secret.file(PHRASE))
    (wrap,) = (place / "keys").iterdir()
    wrap.chmod(0o600)
    wrap.write_bytes(b"junk")
    told = run("repository", "key", "list", str(place))
    assert (told.code, "damaged" in told.err) == (0, True)
    listed = json.loads(run("repository", "key", "list", str(place), "--json").out)
    assert listed["damaged"] == [f"keys/{wrap.name}"]


def test_the_server_is_asked_by_name(
    run: Run, hub: Hub, secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.answer("GET", "/repositories", {"repositories": [{"id": "r1", "name": "main"}], "total": 1})
    hub.answer("POST", "/repositories/r1/keys", {"recipient_id": "abc"}, status=201)
    hub.answer("DELETE", "/repositories/r1/keys/abc", "", status=204)
    hub.answer("POST", "/repositories/r1/unlock", "", status=204)
    one = {"recipient_id": "abc", "kind": "passphrase", "label": "x", "created_at": None}
    listed = {"recipients": [one], "total": 1, "damaged": ["keys/junk"]}
    hub.answer("GET", "/repositories/r1/keys", listed)
    shown = run("repository", "key", "list", "main")
    assert ("abc" in shown.out, "keys/junk" in shown.err) == (True, True)
    phrase = secret.file(PHRASE)
    assert run("repository", "key", "add", "main", "--new-passphrase-file", phrase).code == 0
    assert hub.requests[-1].body == {"passphrase": PHRASE, "label": ""}
    assert run("repository", "key", "remove", "main", "abc", "--yes").code == 0
    assert run("repository", "unlock", "main", "--passphrase-file", phrase).code == 0
    assert hub.requests[-1].body == {"passphrase": PHRASE}
    _type(monkeypatch, OTHER_KEY)
    assert run("repository", "unlock", "main").code == 0
    assert hub.requests[-1].body == {"recovery_key": OTHER_KEY}
    for command in (("list", "main"), ("add", "main", "--new-passphrase-file", phrase)):
        assert json.loads(run("repository", "key", *command, "--json").out)


def test_a_repository_is_registered_and_imported(run: Run, hub: Hub, secret: Secret) -> None:
    hub.answer("GET", "/repositories", {"repositories": [{"id": "r1", "name": "main"}], "total": 1})
    hub.answer("POST", "/repositories", {"id": "r1"}, status=201)
    hub.answer("POST", "/repositories/r1/import", {"job_id": "j1"}, status=202)
    result = {"backups_added": 3, "backups_known": 1}
    log = [{"message": "object x is damaged"}]
    ended = {"job_id": "j1", "status": "completed", "result": result, "log": log}
    hub.answer("GET", "/jobs/j1", ended)
    by_name = run("repository", "import", "main")
    assert (by_name.code, by_name.out) == (0, "3 backups imported, 1 known before\n")
    assert "object x is damaged" in by_name.err
    key = secret.file(OTHER_KEY)
    arguments = ("/mnt/backups", "--name", "main", "--recovery-key-file", key)
    by_path = run("repository", "import", *arguments, "--json")
    assert (by_path.code, json.loads(by_path.out)["status"]) == (0, "completed")
    (made,) = [one for one in hub.requests if (one.method, one.path) == ("POST", "/repositories")]
    assert made.body["config"] == {"path": "/mnt/backups", "recovery_key": OTHER_KEY}
    assert run("repository", "import", "main", "--name", "x").code == 2
    assert run("repository", "import", "/mnt/backups").code == 2


def test_what_is_refused_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "a"
    refused = run(
        "repository", "create", str(place), "--immutable-days", "3", "--lock-mode", "compliance"
    )
    assert (refused.code, place.exists()) == (2, False)
    assert run("repository", "create", str(place), "--lock-mode", "attribute").code == 2
    made = run("repository", "create", str(place), "--immutable-days", "3", "--json")
    assert made.code == 0, made.err
    place.joinpath("more").mkdir()
    assert run("repository", "create", str(place)).code == 4
    assert place.exists()


@pytest.fixture
def umask() -> Iterator[None]:
    """Take back what the command sets for its process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_the_key_of_a_server_that_is_not_there_makes_nothing(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    asked = run("hub", "recovery-key", "--data-dir", str(folder))
    assert (asked.code, "there is no catalog" in asked.err) == (3, True)
    assert not folder.exists()
