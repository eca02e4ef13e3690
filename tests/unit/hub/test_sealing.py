import base64
import json
from typing import Any

import pytest

from sendense.core.errors import Conflict, Corrupt
from sendense.core.ids import SystemIds
from sendense.hub.sealing import Belonging, Key, Secret, Vault, find_username

CANARY = "canary-5f1e"
WHERE = Belonging("source-1", "vc1.example")
GIVEN = {"username": "root@vsphere.local", "password": CANARY}


class Place:
    """A key that is there, and may be exchanged."""

    def __init__(self, secret: bytes = b"k" * 32) -> None:
        self.secret = secret
        self.made = 0

    def read(self) -> Key:
        return Key(Secret(self.secret), "a test")

    def read_or_make(self) -> Key:
        self.made += 1
        return self.read()


def seal(place: Place, **changes: Any) -> dict[str, Any]:
    return Vault(place, SystemIds()).seal({**GIVEN, **changes}, WHERE, may_make_key=True)


def test_what_was_sealed_is_opened() -> None:
    place = Place()
    kept = json.loads(json.dumps(seal(place)))
    assert Vault(place, SystemIds()).open(kept, WHERE) == GIVEN
    assert find_username(kept) == GIVEN["username"]
    assert find_username(None) is None


@pytest.mark.parametrize("password", ["x", "p\u00e4\u00df\U0001f600", " a\nb\0 ", "x" * 1024])
def test_every_password_comes_back_as_it_was(password: str) -> None:
    kept = seal(place := Place(), password=password)
    assert Vault(place, SystemIds()).open(kept, WHERE)["password"] == password


def test_nothing_kept_shows_the_password_and_no_two_are_alike() -> None:
    first, second = seal(Place()), seal(Place())
    for kept in (first, second):
        assert CANARY not in json.dumps(kept)
        assert CANARY.encode() not in base64.b64decode(kept["password"])
    assert first["password"] != second["password"], "a nonce is used once"
    assert first["key_id"] == second["key_id"]


def test_another_key_is_told_from_damage() -> None:
    kept = seal(Place())
    with pytest.raises(Conflict) as caught:
        Vault(Place(b"x" * 32), SystemIds()).open(kept, WHERE)
    assert caught.value.kind == "credentials-key-wrong"
    assert "set-credentials" in caught.value.hint
    assert CANARY not in f"{caught.value}{caught.value.fields}"


@pytest.mark.parametrize(
    "belonging", [Belonging("source-2", WHERE.host), Belonging(WHERE.source_id, "evil.example")]
)
def test_a_secret_opens_for_its_source_and_host_only(belonging: Belonging) -> None:
    kept = seal(place := Place())
    with pytest.raises(Corrupt) as caught:
        Vault(place, SystemIds()).open(kept, belonging)
    assert caught.value.kind == "credentials-damaged"


def _flip(kept: dict[str, Any], position: int) -> dict[str, Any]:
    content = bytearray(base64.b64decode(kept["password"]))
    content[position] ^= 1
    return {**kept, "password": base64.b64encode(content).decode()}


def test_whatever_is_changed_is_noticed() -> None:
    kept = seal(place := Place())
    changed = [
        *(_flip(kept, position) for position in (0, 11, 12, -17, -16, -1)),
        {**kept, "username": "somebody"},
        {**kept, "password": ""},
        {**kept, "password": "no base64!"},
        {**kept, "password": None},
        {key: value for key, value in kept.items() if key != "username"},
    ]
    for one in changed:
        with pytest.raises(Corrupt, match="not what was sealed"):
            Vault(place, SystemIds()).open(one, WHERE)


def test_a_key_is_made_only_where_that_is_allowed() -> None:
    place = Place()
    Vault(place, SystemIds()).seal(GIVEN, WHERE, may_make_key=False)
    assert place.made == 0
    seal(place)
    assert place.made == 1


def test_a_key_is_never_shown() -> None:
    key = Key(Secret(b"k" * 32), "a test")
    shown = f"{key!r} {key} {key.secret!r} {key.secret}"
    assert "kkkk" not in shown
    assert (b"k" * 32).hex() not in shown
    assert key.id not in (b"k" * 32).hex()
