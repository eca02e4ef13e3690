import random
import threading
from collections.abc import Iterator, Sequence

import pytest

from sendense.core.errors import Corrupt, Exists, Invalid, NoSpace, Unavailable
from sendense.repository import chunk, index, pack, uploader
from sendense.repository import writer as writer_module
from sendense.repository.check import check
from sendense.repository.checkpoints import Checkpoints
from sendense.repository.manifest import DiskTotals, Mode
from sendense.repository.pack import BlobType, Kind, PackBuilder
from sendense.repository.repository import Repository
from sendense.repository.session import CheckpointHead, MapRun
from sendense.repository.storage.base import Buffer
from sendense.repository.storage.memory import MemoryStorage
from sendense.repository.uploader import Uploader
from sendense.repository.writer import DiskWriter
from tests import repository_kit as kit
from tests.crash.faulty import Fault, FaultyStorage
from tests.repository_kit import CHUNK, KEY, Kit

DATA = random.Random(3).randbytes(12 * CHUNK)
TOTALS = DiskTotals(Mode.FULL)


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 2 * CHUNK)


@pytest.fixture
def repository() -> Repository:
    made = Kit(MemoryStorage()).create()
    made.begin_session("s")
    return made


def _open(repository: Repository, moment: str = "m", size: int = len(DATA)) -> DiskWriter:
    return repository.open_disk_writer("s", kit.identity(size), moment=moment)


def _put(writer: DiskWriter, *indexes: int, data: bytes = DATA) -> None:
    for at in indexes:
        plain = data[at * CHUNK : (at + 1) * CHUNK]
        writer.put_chunk(at, kit.KEYS.identify(plain), *chunk.encode(plain, 1), len(plain))


def _commit(repository: Repository, moment: str = "m") -> bytes:
    repository.commit("s", kit.draft(repository, "b", moment))
    opened = Kit(repository.storage).open()
    assert check(opened, read_data=True).clean
    return kit.restore(opened, "b")


def test_another_process_goes_on_where_one_stopped(repository: Repository) -> None:
    for expected, stop in ((0, 5), (4, 9), (8, 9), (8, None)):
        with _open(Kit(repository.storage).open(seed=stop or 0)) as writer:
            assert writer.resume_index == expected
        kit.write_disk(repository, "s", DATA, moment="m", stop=stop)
    assert _commit(repository) == DATA


def test_checkpoints_of_another_moment_are_not_used(repository: Repository) -> None:
    kit.write_disk(repository, "s", bytes(reversed(DATA)), moment="before", stop=7)
    with _open(repository, "m") as writer:
        assert writer.resume_index == 0
    kit.write_disk(repository, "s", DATA, moment="m")
    assert _commit(repository) == DATA


def test_checkpoints_of_an_incremental_are_not_used_by_a_full_read(
    repository: Repository,
) -> None:
    kit.back_up(repository, "one", DATA)
    new = bytearray(DATA)
    new[0] ^= 1
    new[8 * CHUNK] ^= 1  # what change tracking did not tell
    kit.write_disk(repository, "s", bytes(new), moment="m", parent="one", changed={0, 1, 2}, stop=3)
    kit.write_disk(repository, "s", bytes(new), moment="m", parent="one")
    assert _commit(repository) == new


def test_what_a_superseded_owner_adds_later_is_never_read(repository: Repository) -> None:
    with _open(repository) as frozen:
        _put(frozen, 0, 1, 2, 3)
        frozen._uploader.drain()
        with _open(repository) as heir:
            assert heir.resume_index == 4
            _put(frozen, 4, 5, data=bytes(reversed(DATA)))  # it wakes up, at no moment of ours
            frozen._uploader.drain()
            _put(heir, 4, 5, 6, 7)
            heir._uploader.drain()
    with _open(repository) as last:
        assert last.resume_index == 8
        _put(last, *range(8, 12))
        last.finish(TOTALS)
    assert _commit(repository) == DATA


def test_of_two_that_finish_a_disk_the_first_counts(repository: Repository) -> None:
    with _open(repository) as first, _open(repository) as second:
        for writer in (first, second):
            _put(writer, *range(12))
        record = first.finish(DiskTotals(Mode.FULL, change_id="first"))
        assert second.finish(DiskTotals(Mode.FULL, change_id="second")) == record
    assert repository.find_finished_disk("s", KEY, moment="m") == record
    assert repository.find_finished_disk("s", KEY, moment="another") is None
    assert _commit(repository) == DATA


@pytest.mark.parametrize("victim", ["packs/", "sessions/s/disks/2000/", "both"])
def test_a_lost_checkpoint_or_pack_costs_time_and_no_data(
    repository: Repository, victim: str
) -> None:
    kit.write_disk(repository, "s", DATA, moment="m", stop=9)
    storage = repository.storage
    prefixes = ["packs/", "sessions/s/disks/"] if victim == "both" else [victim]
    for prefix in prefixes:
        name = next(iter(storage.list_objects(prefix))).name
        size = storage.size(name)
        storage.delete(name)
        storage.put_if_absent(name, bytes(size))
    with _open(repository) as writer:
        assert writer.resume_index == 0
    kit.write_disk(repository, "s", DATA, moment="m")
    repository.commit("s", kit.draft(repository, "b", "m"))
    assert kit.restore(repository, "b") == DATA


def test_a_checkpoint_of_a_longer_pack_is_not_used(repository: Repository) -> None:
    kit.write_disk(repository, "s", DATA, moment="m", stop=9)
    storage = repository.storage
    name = next(iter(storage.list_objects("packs/"))).name
    data = storage.get(name)
    storage.delete(name)
    storage.put_if_absent(name, data + b"more")
    with _open(repository) as writer:
        assert writer.resume_index == 0


def test_checkpoints_that_tell_a_place_twice_are_not_used(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.write_disk(repository, "s", DATA, moment="m", stop=9)
    inherited = Checkpoints.list_inherited

    def twice(self: Checkpoints) -> Iterator[tuple[CheckpointHead, list[MapRun]]]:
        for head, runs in inherited(self):
            yield head, [*runs, *runs]

    monkeypatch.setattr(Checkpoints, "list_inherited", twice)
    with _open(repository) as writer:
        assert writer.resume_index == 0


def test_zeros_that_a_checkpoint_tells_are_zeros(repository: Repository) -> None:
    data = DATA[: 3 * CHUNK] + bytes(4 * CHUNK) + DATA[7 * CHUNK :]
    kit.write_disk(repository, "s", data, moment="m", stop=10)
    with _open(repository) as writer:
        assert writer.resume_index > 7
    kit.write_disk(repository, "s", data, moment="m")
    assert _commit(repository) == data


def test_a_writer_that_cannot_read_what_it_inherits_says_so_and_keeps_it(
    repository: Repository,
) -> None:
    kit.write_disk(repository, "s", DATA, moment="m", stop=9)
    seen = FaultyStorage(repository.storage, at=0, fault=Fault.FAIL_BEFORE)
    with _open(Kit(seen).open()) as writer:
        reached = writer.resume_index
    counted = seen.calls
    failed = 0
    for at in range(1, counted + 1):
        faulty = FaultyStorage(repository.storage, at=at, fault=Fault.FAIL_BEFORE)
        try:
            with _open(Kit(faulty).open()) as writer:
                assert writer.resume_index == reached
        except Unavailable:
            failed += 1
    assert failed
    with _open(repository) as writer:
        assert writer.resume_index == reached


def test_a_chunk_repeated_within_a_disk_is_stored_once(repository: Repository) -> None:
    with _open(repository) as writer:
        _put(writer, 0)
        plain = DATA[:CHUNK]
        assert not writer.put_chunk(
            1, kit.KEYS.identify(plain), *chunk.encode(plain, 1), len(plain)
        )
        writer.finish(TOTALS)
    assert _commit(repository) == DATA[:CHUNK] * 2 + bytes(10 * CHUNK)
    assert repository.stats().chunk_bytes == CHUNK


def test_a_chunk_that_nobody_holds_cannot_be_known(repository: Repository) -> None:
    with _open(repository) as writer:
        writer.put_known(0, bytes([1]) * 32)
        for _ in range(2):  # who tries again is stopped again
            with pytest.raises(Invalid) as caught:
                writer.finish(TOTALS)
            assert caught.value.kind == "chunk-unknown"
    assert repository.find_finished_disk("s", KEY, moment="m") is None


@pytest.mark.parametrize("length", [0, CHUNK - 1])
def test_a_chunk_of_the_wrong_length_is_refused(repository: Repository, length: int) -> None:
    with _open(repository) as writer, pytest.raises(Invalid):
        writer.put_chunk(0, bytes([1]) * 32, chunk.Codec.RAW, DATA[:length], length)


def test_a_pack_with_a_blob_that_memory_spoilt_is_never_put(repository: Repository) -> None:
    with _open(repository) as writer:
        spoilt = bytearray(DATA[:CHUNK])
        writer.put_chunk(0, kit.KEYS.identify(spoilt), chunk.Codec.RAW, spoilt, CHUNK)
        spoilt[77] ^= 1
        with pytest.raises(Corrupt):
            writer.finish(TOTALS)
    assert list(repository.storage.list_objects("packs/")) == []


def test_a_session_with_many_entries_writes_several_segments(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "ENTRIES_MAX", 4)
    monkeypatch.setattr(index, "RECENT_MAX", 2)
    monkeypatch.setattr(index, "RUNS_MAX", 1)
    with _open(repository) as writer:
        _put(writer, *range(8))
        assert writer.find_known([kit.KEYS.identify(DATA[:CHUNK]), bytes([9]) * 32]) == [
            True,
            False,
        ]
        _put(writer, *range(8, 12))
        writer.finish(TOTALS)
    assert len(list(repository.storage.list_objects("index/s-"))) > 2
    assert _commit(repository) == DATA


def test_chunks_that_are_all_known_make_checkpoints_too(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.back_up(repository, "one", DATA)
    monkeypatch.setattr("sendense.repository.writer.IDS_MAX", 4)
    kit.write_disk(repository, "s", DATA, moment="m", stop=9)
    with _open(repository) as writer:
        assert writer.resume_index == 8


def test_a_failed_put_surfaces_and_nothing_after_it_is_put() -> None:
    uploader = Uploader()
    done: list[int] = []

    def fail() -> None:
        raise NoSpace("full")

    uploader.submit(lambda: done.append(1))
    uploader.submit(fail)
    for _ in range(2):
        with pytest.raises(NoSpace):
            uploader.drain()
        with pytest.raises(NoSpace):
            uploader.submit(lambda: done.append(2))
    uploader.close()
    assert done == [1]


def test_a_full_pack_of_tiny_blobs_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "ENTRIES_MAX", 3)
    repository = Kit(MemoryStorage()).create()
    repository.begin_session("s")
    data = b"".join(bytes([n + 1]) * CHUNK for n in range(9))
    kit.write_disk(repository, "s", data, moment="m")
    assert len(list(repository.storage.list_objects("packs/"))) == 3
    assert _commit(repository) == data


def test_names_of_packs_never_recur() -> None:
    names = set()
    for seed in range(3):
        salt = random.Random(seed).randbytes(32)
        builder = PackBuilder(Kind.DATA, session_id="s", salt=salt, keys=kit.KEYS)
        builder.add(BlobType.CHUNK, 0, kit.KEYS.identify(b"x"), b"x", plain_length=1)
        names.add(builder.seal().ref.name)
    assert len(names) == 3


def test_a_job_that_waits_behind_a_failed_one_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader, "IN_FLIGHT_MAX", 2)
    begun, ran = threading.Event(), threading.Event()

    def fail() -> None:
        assert begun.wait(60)
        raise NoSpace("full", kind="repository-full")

    jobs = Uploader()
    jobs.submit(fail)
    jobs.submit(ran.set)
    begun.set()
    with pytest.raises(NoSpace):
        jobs.drain()
    jobs.close()
    assert not ran.is_set()


def test_what_is_said_to_be_known_is_looked_up_batch_by_batch(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense.repository.writer.VERIFY_BATCH", 2)
    with _open(repository) as writer:
        writer.put_known(0, bytes([1]) * 32)
        with pytest.raises(Invalid) as caught:
            writer.put_known(1, bytes([2]) * 32)
    assert caught.value.kind == "chunk-unknown"


def test_a_pack_that_is_there_is_the_same_pack_only_if_its_size_fits() -> None:
    builder = PackBuilder(Kind.DATA, session_id="s", salt=bytes(pack.SALT_LENGTH), keys=kit.KEYS)
    builder.add(BlobType.CHUNK, chunk.Codec.RAW, kit.KEYS.identify(b"x"), b"x", plain_length=1)
    sealed = builder.seal()
    storage = kit.keyed(MemoryStorage())
    for _ in range(2):  # the answer to the first try may have been lost
        pack.put(storage, sealed)
    storage.delete(sealed.ref.name)
    storage.put_if_absent(sealed.ref.name, b"another")
    with pytest.raises(Exists):
        pack.put(storage, sealed)


def test_a_writer_gives_a_sign_of_life_even_where_it_stores_nothing() -> None:
    made = Kit(MemoryStorage())
    repository = made.create()
    repository.begin_session("s")

    def signs() -> int:
        return len(list(repository.storage.list_objects("sessions/s/")))

    with _open(repository) as writer:
        before = signs()
        writer.put_zero(0)
        assert signs() == before
        made.clock.advance(600)
        writer.put_zero(1)
        writer._uploader.drain()
        assert signs() == before + 1
        writer.put_zero(2)
        writer._uploader.drain()
        assert signs() == before + 1
        assert writer.find_known([]) == []


def test_a_pack_is_sealed_when_the_last_thread_has_sealed_its_blob() -> None:
    entered, release = threading.Event(), threading.Event()

    class SlowKey:
        def __init__(self) -> None:
            self._key = kit.KEYS.new_pack()
            self.wrapped = self._key.wrapped

        def seal(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
            if threading.current_thread() is helper:
                entered.set()
                assert release.wait(60)
            return self._key.seal(offset, head, data)

        def open(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
            return self._key.open(offset, head, data)

        def open_briefly(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
            return self._key.open_briefly(offset, head, data)

    builder = PackBuilder(Kind.DATA, session_id="s", salt=bytes(pack.SALT_LENGTH), keys=kit.KEYS)
    builder._key = SlowKey()
    builder.add(BlobType.CHUNK, chunk.Codec.RAW, kit.KEYS.identify(b"x"), b"x", plain_length=1)
    helper = threading.Thread(target=builder.seal_added)
    helper.start()
    assert entered.wait(60)
    threading.Timer(0.05, release.set).start()
    sealed = builder.seal()
    helper.join()
    assert len(sealed.entries) == 1


def test_a_blob_that_does_not_open_again_is_told_by_the_seal_whoever_found_it() -> None:
    builder = PackBuilder(Kind.DATA, session_id="s", salt=bytes(pack.SALT_LENGTH), keys=kit.KEYS)
    builder.add(BlobType.CHUNK, chunk.Codec.RAW, kit.KEYS.identify(b"x"), b"y", plain_length=1)
    builder.seal_added()
    with pytest.raises(Corrupt):
        builder.seal()


LEAF = 256  # chunks


class _Counting(MemoryStorage):
    """Counts reads of disk maps."""

    reads = 0

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.reads += name.startswith("meta/")
        return super().get_range(name, offset, length)


def _back_up_leaves(repository: Repository, leaves: int) -> int:
    """Back up a sparse disk with something in each leaf of its map, and return its size."""
    size = leaves * LEAF * CHUNK
    repository.begin_session("one")
    with repository.open_disk_writer("one", kit.identity(size), moment="m1") as writer:
        for leaf in range(leaves):
            data = bytes([1 + leaf]) * CHUNK
            chunk_id = kit.KEYS.identify(data)
            writer.put_chunk(leaf * LEAF, chunk_id, *chunk.encode(data, 1), CHUNK)
        writer.finish(TOTALS)
    repository.commit("one", kit.draft(repository, "one", "m1"))
    return size


def _open_increment(repository: Repository, size: int) -> DiskWriter:
    """Open the disk of session `two`, which builds on the backup `one`."""
    return repository.open_disk_writer(
        "two", kit.identity(size), moment="m2", mode=Mode.INCREMENTAL, parent_backup_id="one"
    )


@pytest.mark.parametrize("are_expected", [True, False])
def test_leaves_in_which_changes_are_expected_are_read_together(*, are_expected: bool) -> None:
    storage = _Counting()
    repository = Kit(storage).create()
    leaves = 40
    size = _back_up_leaves(repository, leaves)
    repository.begin_session("two", parents=["one"])
    with _open_increment(repository, size) as writer:
        if are_expected:
            writer.expect(iter(range(leaves)))
        storage.reads = 0
        for leaf in range(leaves):
            assert writer.parent_id(leaf * LEAF) == kit.KEYS.identify(bytes([1 + leaf]) * CHUNK)
            plain = bytes([101 + leaf]) * CHUNK
            chunk_id = kit.KEYS.identify(plain)
            writer.put_chunk(leaf * LEAF + 1, chunk_id, *chunk.encode(plain, 1), CHUNK)
        assert storage.reads == (2 if are_expected else 1 + leaves)  # the root, then its leaves
        writer.finish(DiskTotals(Mode.INCREMENTAL))
    repository.commit("two", kit.draft(repository, "two", "m2"))
    with Kit(storage).open().open_disk_reader("two", KEY) as reader:
        for leaf in range(leaves):
            start = leaf * LEAF * CHUNK
            assert reader.read(start, 3 * CHUNK) == (
                bytes([1 + leaf]) * CHUNK + bytes([101 + leaf]) * CHUNK + bytes(CHUNK)
            )


def test_expected_leaves_that_were_passed_over_are_not_read() -> None:
    storage = _Counting()
    repository = Kit(storage).create()
    size = _back_up_leaves(repository, 6)
    repository.begin_session("two", parents=["one"])
    with _open_increment(repository, size) as writer:
        writer.expect(iter([0, 1, 3, 4]))
        storage.reads = 0
        for leaf in (3, 4):
            assert writer.parent_id(leaf * LEAF) == kit.KEYS.identify(bytes([1 + leaf]) * CHUNK)
        assert storage.reads == 2  # the root, then the two that were asked for


def test_a_damaged_leaf_that_was_expected_matters_only_where_it_is_needed() -> None:
    storage = MemoryStorage()
    repository = Kit(storage).create()
    size = _back_up_leaves(repository, 3)
    (name,) = (found.name for found in storage.list_objects("meta/"))
    stored = bytearray(storage.get(name))
    with repository.open_disk_reader("one", KEY) as reader:
        root = reader._map.slots(1, 0)
    assert root is not None
    place = repository.segments.locate([root[1]])[0]
    stored[place.offset + pack.BLOB.size] ^= 1
    storage.delete(name)
    storage.put_if_absent(name, bytes(stored))
    repository.begin_session("two", parents=["one"])
    with _open_increment(repository, size) as writer:
        writer.expect(iter(range(3)))
        plain = DATA[:CHUNK]
        put = (kit.KEYS.identify(plain), *chunk.encode(plain, 1), CHUNK)
        writer.put_chunk(1, *put)
        with pytest.raises(Corrupt) as caught:
            writer.put_chunk(LEAF + 1, *put)
    assert caught.value.kind == "object-corrupt"


class _BadSector(MemoryStorage):
    """Cannot read some bytes of disk maps."""

    bad: range = range(0)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if name.startswith("meta/") and range(
            max(offset, self.bad.start), min(offset + length, self.bad.stop)
        ):
            raise Unavailable("input/output error", kind="storage-failed")
        return super().get_range(name, offset, length)


def test_what_cannot_be_read_between_the_leaves_that_are_needed_does_not_matter() -> None:
    storage = _BadSector()
    repository = Kit(storage).create()
    size = _back_up_leaves(repository, 6)
    with repository.open_disk_reader("one", KEY) as reader:
        slots = reader._map.slots(1, 0)
    assert slots is not None
    place = repository.segments.locate([slots[3]])[0]
    repository.begin_session("two", parents=["one"])
    with _open_increment(repository, size) as writer:
        storage.bad = range(place.offset, place.offset + 1)
        writer.expect(iter([0, 5]))
        plain = DATA[:CHUNK]
        put = (kit.KEYS.identify(plain), *chunk.encode(plain, 1), CHUNK)
        writer.put_chunk(1, *put)
        writer.put_chunk(5 * LEAF + 1, *put)
        writer.finish(DiskTotals(Mode.INCREMENTAL))
    storage.bad = range(0)
    repository.commit("two", kit.draft(repository, "two", "m2"))
    with Kit(storage).open().open_disk_reader("two", KEY) as reader:
        assert reader.read(3 * LEAF * CHUNK, 1) == b"\4"
        assert reader.read((5 * LEAF + 1) * CHUNK, CHUNK) == plain


@pytest.mark.parametrize("failing", ["index/", "done"])
def test_a_disk_whose_end_could_not_be_put_is_finished_by_a_second_try(failing: str) -> None:
    class Failing(MemoryStorage):
        left = 1

        def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
            if failing in name and self.left:
                self.left -= 1
                raise Unavailable("injected", kind="storage-failed")
            super().put_if_absent(name, data)

    repository = Kit(Failing()).create()
    repository.begin_session("s")
    with _open(repository) as writer:
        _put(writer, *range(12))
        with pytest.raises(Unavailable):
            writer.finish(TOTALS)
        writer.finish(TOTALS)
    assert _commit(repository) == DATA


def test_a_map_of_more_nodes_than_are_looked_up_together_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer_module, "NODES_LOOKED_UP", 4)
    repository = Kit(MemoryStorage()).create()
    _back_up_leaves(repository, 10)
    opened = Kit(repository.storage).open()
    assert check(opened, read_data=True).clean
    with opened.open_disk_reader("one", KEY) as reader:
        assert [reader.read(leaf * LEAF * CHUNK, 1)[0] for leaf in range(10)] == [*range(1, 11)]


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 70_000), (300, LEAF**3 + 10)])
def test_a_trimmed_start_of_a_disk_that_grew_by_far_is_zero(
    before: int, after: int, *, is_resumed: bool
) -> None:
    repository = Kit(MemoryStorage()).create()
    repository.begin_session("one")
    with repository.open_disk_writer("one", kit.identity(before * CHUNK), moment="m1") as writer:
        _put(writer, 0)
        writer.finish(TOTALS)
    repository.commit("one", kit.draft(repository, "one", "m1"))
    repository.begin_session("two", parents=["one"])

    writer = _open_increment(repository, after * CHUNK)
    for start in range(0, after, 1 << 20):  # as the engine tells a trim
        writer.put_zero(start, min(1 << 20, after - start))
    if is_resumed:
        writer._checkpoint()
        writer._uploader.drain()
        writer.close()
        writer = _open_increment(repository, after * CHUNK)
        assert writer.resume_index == after
    with writer:
        writer.finish(DiskTotals(Mode.INCREMENTAL))
    repository.commit("two", kit.draft(repository, "two", "m2"))
    with repository.open_disk_reader("two", KEY) as reader:
        assert reader.read(0, CHUNK) == bytes(CHUNK)
        assert [one.zero for one in reader.list_extents()] == [True]


def test_a_node_that_could_not_be_looked_up_is_stored_by_a_second_try(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "NODES_LOOKED_UP", 1)
    with _open(repository) as writer:
        _put(writer, *range(12))
        with monkeypatch.context() as patched:

            def fail(_ids: Sequence[bytes]) -> None:
                raise MemoryError

            patched.setattr(repository.segments, "find_known", fail)
            with pytest.raises(MemoryError):
                writer.finish(TOTALS)
        writer.finish(TOTALS)
    assert _commit(repository) == DATA
