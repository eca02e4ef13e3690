"""Encryption: what is told without the key, what changes are noticed, and that no nonce recurs."""

import random
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.core.errors import Corrupt, Denied, Invalid, NoSpace
from sendense.repository import descriptor, format, keys, session
from sendense.repository.check import check
from sendense.repository.format import Frame
from sendense.repository.keyed import Keyed
from sendense.repository.keys import UNSEALED, DomainKeys, SealBroken
from sendense.repository.storage.base import Buffer
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, ROOT, Kit

OTHER = bytes(reversed(ROOT))
DATA = random.Random(3).randbytes(3 * CHUNK) + b"a word that anybody would know" * 9000


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage()
    repository = Kit(made).create()
    kit.back_up(repository, "one", DATA)
    kit.back_up(repository, "two", DATA[::-1], parent="one")
    repository.delete_backup("one", who="somebody-telling", why="a-telling-reason")
    repository.begin_session("open")
    kit.write_disk(repository, "open", DATA + DATA, moment="a-telling-moment", stop=4)
    return made


def _replace(storage: MemoryStorage, name: str, data: bytes) -> None:
    storage.delete(name)
    storage.put_if_absent(name, data)


class TestUnlocking:
    def test_without_a_key_nothing_opens(self, storage: MemoryStorage) -> None:
        with pytest.raises(Denied) as caught:
            Kit(storage, root_key=None).open()
        assert (caught.value.kind, caught.value.fields["domain"]) == (
            "repository-locked",
            kit.KEYS.domain.hex(),
        )

    def test_another_key_is_told_from_damage(self, storage: MemoryStorage) -> None:
        with pytest.raises(Denied) as caught:
            Kit(storage, root_key=OTHER).open()
        assert caught.value.kind == "repository-key-wrong"

    def test_a_key_for_what_is_not_encrypted_is_refused(self) -> None:
        """Else somebody could swap in a repository of their own, and read what is backed up."""
        storage = MemoryStorage()
        Kit(storage, root_key=None).create()
        with pytest.raises(Invalid) as caught:
            Kit(storage).open()
        assert caught.value.kind == "repository-not-encrypted"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"chunk_size":131072', b'"chunk_size":262144'),
            (b'"compression_level":1', b'"compression_level":0'),
            (b'"write":[]', b'"write":["odd"]'),
            (b'"mac":"', b'"mac":"00'),
            (b'"read":["encryption"]', b'"read":[]'),
        ],
    )
    def test_a_changed_descriptor_is_refused(
        self, storage: MemoryStorage, old: bytes, new: bytes
    ) -> None:
        text = storage.get(descriptor.NAME)
        assert old in text
        _replace(storage, descriptor.NAME, text.replace(old, new))
        with pytest.raises(Corrupt):
            Kit(storage).open()

    def test_the_same_key_in_another_repository_is_the_same_domain(self) -> None:
        made = [Kit(MemoryStorage(), seed=seed).create() for seed in (1, 2)]
        assert len({one.id for one in made}) == 2
        assert {one.storage.keys.domain for one in made} == {kit.KEYS.domain}


class TestSecrecy:
    def test_no_name_and_no_byte_tells_content(self, storage: MemoryStorage) -> None:
        # Of six bytes and more: shorter words turn up in cipher text by chance.
        words = [b"a word that anybody", DATA[:16], b"telling", b"source-1", b"disk-a"]
        for found in storage.list_objects():
            data = storage.get(found.name)
            assert not [word for word in words if word in data or word in found.name.encode()]

    def test_ids_are_no_hashes_that_somebody_could_look_up(self, storage: MemoryStorage) -> None:
        known = {UNSEALED.identify(DATA[at : at + CHUNK]) for at in range(0, len(DATA), CHUNK)}
        whole = b"".join(storage.get(found.name) for found in storage.list_objects())
        assert not [one for one in known if one in whole]
        moment = UNSEALED.hash_name(b"a-telling-moment").hex()[: session.HASH_DIGITS]
        assert not [one for one in storage.list_objects() if moment in one.name]

    def test_what_is_stored_does_not_compress(self, storage: MemoryStorage) -> None:
        for found in storage.list_objects("packs/"):
            data = storage.get(found.name)
            assert len(zlib.compress(data)) > 0.98 * len(data)

    def test_keys_are_not_shown(self) -> None:
        assert repr(kit.KEYS) == f"DomainKeys({kit.KEYS.domain.hex()})"
        assert kit.KEYS.root == ROOT
        assert "root_key" not in repr(descriptor.RepositorySettings(root_key=ROOT))


class TestTampering:
    """Whoever can write but has no key can make all hashes fit, and is found out all the same."""

    def test_a_frame_with_a_fitting_hash_is_refused(self, storage: MemoryStorage) -> None:
        for name, kind in (("outcomes/one", Frame.OUTCOME), ("tombs/", Frame.TOMBSTONE)):
            found = next(storage.list_objects(name))
            body = bytearray(storage.get(found.name)[: -format.MAC_LENGTH])
            body[-1] ^= 1
            forged = bytes(body) + UNSEALED.identify(body)
            with pytest.raises(Corrupt, match="seal is broken"):
                format.open_frame(kit.KEYS, kind, forged, name=found.name)

    def test_an_unsealed_frame_is_refused(self, storage: MemoryStorage) -> None:
        forged = format.seal_frame(UNSEALED, Frame.OUTCOME, b"{}")
        _replace(storage, "outcomes/one", forged)
        with pytest.raises(Corrupt, match="its key is unknown"):
            Kit(storage).open().find_outcome("one")

    def test_a_frame_sealed_with_another_key_is_refused(self) -> None:
        forged = format.seal_frame(DomainKeys(OTHER), Frame.DONE, b"{}")
        with pytest.raises(Corrupt, match="its key is unknown"):
            format.open_frame(kit.KEYS, Frame.DONE, forged, name="x")

    def test_a_plain_frame_with_a_key_slot_is_refused(self) -> None:
        head = bytearray(format.seal_frame(UNSEALED, Frame.DONE, b"{}")[: -format.MAC_LENGTH])
        head[40] = 1
        forged = bytes(head) + UNSEALED.identify(head)
        with pytest.raises(Corrupt, match="seal is broken"):
            format.open_frame(UNSEALED, Frame.DONE, forged, name="x")

    def test_an_index_with_a_fitting_hash_is_refused(self, storage: MemoryStorage) -> None:
        for found in list(storage.list_objects("index/")):
            body = storage.get(found.name)[: -format.MAC_LENGTH]
            _replace(storage, found.name, body + UNSEALED.identify(body))
        opened = Kit(storage).open()
        assert set(opened.segments.damaged) == {
            found.name for found in storage.list_objects("index/") if "open" not in found.name
        }

    @pytest.mark.parametrize("at", [0, -1])
    def test_a_blob_that_was_changed_or_moved_is_refused(
        self, storage: MemoryStorage, at: int
    ) -> None:
        opened = Kit(storage).open()
        place = opened.segments.locate([opened.identify(DATA[::-1][:CHUNK])])[0]
        whole = bytearray(storage.get(place.pack.name))
        body = place.offset + 56
        whole[body + (at % place.stored_length)] ^= 1
        _replace(storage, place.pack.name, bytes(whole))
        with pytest.raises(Corrupt, match="seal of blob"):
            kit.restore(opened, "two")

    def test_a_pack_s_key_that_was_changed_is_refused(self) -> None:
        with pytest.raises(SealBroken):
            kit.KEYS.open_pack(bytes(keys.WRAPPED_LENGTH))
        with pytest.raises(SealBroken):
            UNSEALED.open_pack(b"x" * keys.WRAPPED_LENGTH)

    def test_a_pack_whose_header_has_another_key_than_the_index_is_reported(
        self, storage: MemoryStorage
    ) -> None:
        opened = Kit(storage).open()
        name = opened.segments.locate([opened.identify(DATA[::-1][:CHUNK])])[0].pack.name
        head = bytearray(storage.get(name))
        head[128] ^= 1
        head[200:208] = format.check_of(bytes(head[:200]))
        _replace(storage, name, bytes(head))
        assert not check(opened, read_data=True).clean


class _Recorder:
    """Stands between the keys and the cipher, and counts key and nonce of each sealing."""

    def __init__(self) -> None:
        self.used: Counter[tuple[bytes, bytes]] = Counter()
        self.generate_key = AESGCM.generate_key

    def __call__(self, key: bytes) -> "_Cipher":
        return _Cipher(key, self.used)


class _Cipher:
    def __init__(self, key: bytes, used: Counter[tuple[bytes, bytes]]) -> None:
        self._real, self._key, self._used = AESGCM(key), key, used
        self.decrypt: Callable[..., bytes] = self._real.decrypt
        self.decrypt_into: Callable[..., int] = self._real.decrypt_into

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        self._used[self._key, nonce] += 1
        return self._real.encrypt(nonce, data, associated)


def test_no_nonce_is_used_twice_whatever_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed attempts, failed puts, the same data anew, and several processes."""
    recorder = _Recorder()
    monkeypatch.setattr(keys, "AESGCM", recorder)
    monkeypatch.setattr("sendense.repository.pack.TARGET_BYTES", 2 * CHUNK)
    storage = MemoryStorage()
    root = ROOT[::-1]
    kit_of = [Kit(storage, root_key=root, seed=7) for _ in range(2)]
    kit_of[0].create().begin_session("s")
    real = storage.put_if_absent
    failing = random.Random(5)

    def put(name: str, data: object) -> None:
        real(name, data)  # type: ignore[arg-type]
        if failing.random() < 0.3:  # done, but the answer is lost
            raise NoSpace("no", kind="repository-full")

    for turn in range(12):
        # The same seed each time, as if the random numbers of two machines were alike.
        opened = kit_of[turn % 2].open(seed=3)
        monkeypatch.setattr(storage, "put_if_absent", put if turn < 9 else real)
        try:
            kit.write_disk(opened, "s", DATA, moment="m" if turn % 3 else "another")
        except NoSpace:
            continue
    opened = kit_of[0].open(seed=3)
    kit.write_disk(opened, "s", DATA, moment="m")
    opened.commit("s", kit.draft(opened, "b", "m"))
    assert kit.restore(opened, "b") == DATA
    assert len(recorder.used) > 60
    assert set(recorder.used.values()) == {1}


def test_both_kinds_of_keys_tell_chunks_from_nodes() -> None:
    for one in (UNSEALED, kit.KEYS):
        assert len({one.identify(b"x"), one.identify_node(b"x"), bytes(32)}) == 3
    storage = Keyed(MemoryStorage(), kit.KEYS)
    assert storage.list_top() == []
    assert storage.capacity() is None


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 1 << 20])
def test_what_is_opened_briefly_is_as_what_is_opened_in_any_thread(length: int) -> None:
    key = kit.KEYS.new_pack()
    sealed = key.seal(208, b"head", bytes(length))

    def open_both() -> tuple[bytes, bytes]:
        return bytes(key.open(208, b"head", sealed)), bytes(key.open_briefly(208, b"head", sealed))

    def refuse(stored: Buffer) -> None:
        for way in (key.open, key.open_briefly):
            with pytest.raises(SealBroken):
                way(208, b"head", stored)

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(open_both).result() == (bytes(length), bytes(length))
    with ThreadPoolExecutor(1) as executor:
        executor.submit(refuse, bytes(sealed)[:length]).result()
    assert open_both() == (bytes(length), bytes(length))
