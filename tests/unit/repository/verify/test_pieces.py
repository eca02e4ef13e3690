"""Packs looked at piece by piece: the same verdict as of the whole, in less memory."""

import random

import pytest

from sendense.core import units
from sendense.core.errors import Corrupt, NotFound
from sendense.repository import pack
from sendense.repository.pack import PackRef
from sendense.repository.repository import Repository
from sendense.repository.storage.memory import MemoryStorage
from sendense.repository.verify import pieces
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2 * CHUNK)
    repository = Kit(MemoryStorage(capacity_bytes=units.GIB)).create()
    kit.back_up(repository, "one", random.Random(3).randbytes(5 * CHUNK))
    return repository


def _ref(repository: Repository) -> PackRef:
    (name,) = (one.name for one in repository.storage.list_objects("packs/"))
    return pack.read_ref(repository.storage, name)


@pytest.mark.parametrize("decode", [False, True])
def test_a_pack_is_read_in_pieces_and_each_byte_once(
    repository: Repository,
    *,
    decode: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ref = _ref(repository)
    seen: list[tuple[int, int]] = []
    real = repository.storage.get_range

    def note(name: str, offset: int, length: int) -> bytes:
        seen.append((offset, offset + length))
        return real(name, offset, length)

    def refuse(_: str) -> bytes:
        raise AssertionError("not whole")

    monkeypatch.setattr(repository.storage, "get_range", note)
    monkeypatch.setattr(repository.storage, "get", refuse)
    pieces.verify(repository.storage, ref, decode=decode)
    blobs = [run for run in seen if run[1] - run[0] > CHUNK]
    assert len(blobs) == 5, "two chunks and their headers do not fit into a piece"
    assert {end for _, end in blobs[:-1]} == {start for start, _ in blobs[1:]}


@pytest.mark.parametrize("decode", [False, True])
def test_a_change_anywhere_is_found(repository: Repository, *, decode: bool) -> None:
    ref = _ref(repository)
    data = repository.storage.get(ref.name)
    chooser = random.Random(8)
    places = [0, 60, 200, pack.HEADER.size, len(data) - 1, len(data) - pack.FOOTER.size - 1]
    for place in [*places, *(chooser.randrange(len(data)) for _ in range(60))]:
        changed = bytearray(data)
        changed[place] ^= 1 << chooser.randrange(8)
        repository.storage.delete(ref.name)
        repository.storage.put_if_absent(ref.name, bytes(changed))
        with pytest.raises(Corrupt) as caught:
            pieces.verify(repository.storage, ref, decode=decode)
        assert caught.value.kind == "pack-corrupt", "as looking at the whole says"


def test_a_pack_that_was_misread_once_is_not_called_bad(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = _ref(repository)
    real = repository.storage.get_range
    monkeypatch.setattr(
        repository.storage,
        "get_range",
        lambda name, offset, length: bytes(len(real(name, offset, length))),
    )
    pieces.verify(repository.storage, ref, decode=True)


def test_a_pack_that_is_gone_is_not_found(repository: Repository) -> None:
    ref = _ref(repository)
    repository.storage.delete(ref.name)
    with pytest.raises(NotFound):
        pieces.verify(repository.storage, ref, decode=True)


def test_a_pack_without_blobs_is_checked_too(repository: Repository) -> None:
    builder = pack.PackBuilder(
        pack.Kind.DATA, session_id="s", salt=bytes(pack.SALT_LENGTH), keys=kit.KEYS
    )
    sealed = builder.seal()
    pack.put(repository.storage, sealed)
    pieces.verify(repository.storage, sealed.ref, decode=True)
