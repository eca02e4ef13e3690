"""Packs looked at piece by piece: the same verdict as of the whole, in less memory."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sendense.core import units
from sendense.core.errors import Corrupt, NotFound, Unavailable
from sendense.repository import pack
from sendense.repository.keys import Keys
from sendense.repository.pack import PackRef
from sendense.repository.repository import Repository
from sendense.repository.storage.base import Buffer
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


def _look(repository: Repository, ref: PackRef, *, decode: bool, hands: int) -> pieces.Look:
    storage = repository.storage
    in_pieces = storage.capacity() is not None
    return pieces.Look(storage, ref, decode=decode, in_pieces=in_pieces, hands=hands)


def _verify(repository: Repository, ref: PackRef, *, decode: bool, hands: int = 2) -> None:
    """Look at a pack with several threads; raise what the first of them raised."""
    look = _look(repository, ref, decode=decode, hands=hands)
    with ThreadPoolExecutor(hands) as executor:
        futures = [executor.submit(look.work) for _ in range(look.hands)]
    for future in futures:
        future.result()


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
    _verify(repository, ref, decode=decode)
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
            _verify(repository, ref, decode=decode)
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
    _verify(repository, ref, decode=True)


def test_a_pack_that_is_gone_is_not_found(repository: Repository) -> None:
    ref = _ref(repository)
    repository.storage.delete(ref.name)
    with pytest.raises(NotFound):
        _verify(repository, ref, decode=True)


def test_a_pack_without_blobs_is_checked_too(repository: Repository) -> None:
    builder = pack.PackBuilder(
        pack.Kind.DATA, session_id="s", salt=bytes(pack.SALT_LENGTH), keys=kit.KEYS
    )
    sealed = builder.seal()
    pack.put(repository.storage, sealed)
    _verify(repository, sealed.ref, decode=True)


def test_pieces_are_decoded_by_several_threads_at_once(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)  # passed only where two are in it
    real = pack.open_blob
    opened: list[int] = []

    def meet(keys: Keys, ref: PackRef, offset: int, data: Buffer, blob_id: bytes) -> bytes:
        opened.append(offset)
        if len(opened) <= 2:
            both.wait()
        return real(keys, ref, offset, data, blob_id)

    monkeypatch.setattr(pack, "open_blob", meet)
    _verify(repository, _ref(repository), decode=True, hands=2)
    assert len(opened) == len(set(opened)) == 5


def test_where_one_thread_cannot_read_the_others_end(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = _look(repository, _ref(repository), decode=True, hands=2)
    assert look.hands == 2

    def fail(*_: object) -> bytes:
        raise Unavailable("input/output error", kind="storage-failed")

    monkeypatch.setattr(repository.storage, "get_range", fail)
    monkeypatch.setattr(repository.storage, "get", fail)
    with pytest.raises(Unavailable):
        look.work()
    look.work()  # reads nothing any more, so it does not fail again


def test_hands_that_would_only_wait_are_not_wanted(repository: Repository) -> None:
    ref = _ref(repository)
    assert _look(repository, ref, decode=True, hands=8).hands == 3, "as many as pieces"
    assert _look(repository, ref, decode=False, hands=8).hands == 1, "reading is one after another"


def test_on_an_object_store_a_pack_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Kit(MemoryStorage()).create()
    kit.back_up(repository, "one", random.Random(3).randbytes(5 * CHUNK))
    ref = _ref(repository)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2 * CHUNK)
    assert _look(repository, ref, decode=True, hands=4).hands == 1
    monkeypatch.delattr(MemoryStorage, "get_range")
    _verify(repository, ref, decode=True)
