import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from sendense.core import units
from sendense.core.errors import Cancelled, Corrupt, SendenseError, Unavailable
from sendense.core.extent import Extent
from sendense.engine import sampling
from sendense.engine.backup import EngineSettings
from sendense.engine.plan import Mode, Reason
from sendense.engine.progress import Phase
from sendense.engine.worklist import Worklist
from sendense.repository import pack
from sendense.repository.verify.run import verify
from sendense.repository.writer import DiskWriter
from tests.engine_kit import CHUNK, KEY, PAGE, WAIT_SECONDS, Lab, SparseDisk, View, served


def small_disk(*, chunks: int = 20, seed: int = 1) -> SparseDisk:
    """Return a disk with noise in every chunk."""
    disk = SparseDisk(chunks * CHUNK)
    chooser = random.Random(seed)
    for index in range(chunks):
        disk.write_page(index * CHUNK // PAGE, chooser.randbytes(PAGE))
    return disk


def bytes_of(disk: SparseDisk) -> bytes:
    return disk.read(0, disk.size_bytes)


@pytest.mark.parametrize(
    "size", [512, 1024, CHUNK - 512, CHUNK, CHUNK + 512, 3 * CHUNK + 1536, 64 * CHUNK - 512]
)
def test_a_disk_of_any_size_in_sectors_comes_back_bit_for_bit(size: int) -> None:
    disk = SparseDisk(size)
    disk.fill(0, size, content=random.Random(size).randbytes)
    lab = Lab()
    backup_id, done = lab.back_up(disk)
    assert lab.read_back(backup_id) == bytes_of(disk)
    assert done.record.bytes_read == size
    assert (done.decision.mode, done.record.mode) == (Mode.FULL, Mode.FULL)


@pytest.mark.parametrize("chunk_size", [128 * units.KIB, units.MIB, 4 * units.MIB])
def test_every_chunk_size_reads_the_same(chunk_size: int) -> None:
    disk = SparseDisk(9 * units.MIB + 512)
    disk.fill(units.MIB, 7 * units.MIB, content=random.Random(3).randbytes)
    disk.write_page(disk.size_bytes // PAGE, b"end")
    lab = Lab(chunk_size=chunk_size)
    backup_id, _ = lab.back_up(disk)
    assert lab.read_back(backup_id) == bytes_of(disk)


def test_what_the_source_calls_zero_is_never_read() -> None:
    disk = SparseDisk(100 * CHUNK)
    disk.write_page(50 * CHUNK // PAGE, b"here")
    lab = Lab()
    _, done = lab.back_up(disk)
    assert disk.reads == CHUNK
    assert done.record.bytes_read == CHUNK


def test_a_disk_that_was_never_written_is_not_connected_to() -> None:
    lab = Lab()
    disk = SparseDisk(100 * CHUNK)
    backup_id, done = lab.back_up(disk)
    assert (disk.reads, done.record.bytes_read, done.record.root) == (0, 0, bytes(32))
    assert lab.read_back(backup_id) == bytes(100 * CHUNK)


def test_zeros_that_are_allocated_are_read_and_not_stored() -> None:
    disk = SparseDisk(40 * CHUNK)
    disk.fill(0, disk.size_bytes, content=bytes)
    lab = Lab()
    backup_id, done = lab.back_up(disk)
    assert (done.record.bytes_read, done.record.bytes_new) == (40 * CHUNK, 0)
    assert done.record.root == bytes(32)
    assert lab.read_back(backup_id) == bytes(40 * CHUNK)


def test_a_sparse_disk_of_over_2_tib_takes_no_longer_than_its_data() -> None:
    disk = SparseDisk(3 * units.TIB + 512)
    places = [0, units.TIB + 4096, 2 * units.TIB - 4096, 2 * units.TIB, 3 * units.TIB]
    for place in places:
        disk.write_page(place // PAGE, f"at {place}".encode())
    lab = Lab()
    started = time.monotonic()
    backup_id, _ = lab.back_up(disk)
    assert time.monotonic() - started < 15
    for place in places:
        length = min(PAGE, disk.size_bytes - place)
        assert lab.read_back(backup_id, offset=place, length=length) == disk.read(place, length)


def test_equal_chunks_are_stored_once_even_where_they_follow_each_other() -> None:
    disk = SparseDisk(64 * CHUNK)
    pattern = random.Random(5).randbytes(PAGE)
    disk.fill(0, disk.size_bytes, content=lambda _length: pattern)
    lab = Lab()
    backup_id, done = lab.back_up(disk)
    assert done.record.bytes_new == CHUNK
    assert done.record.bytes_deduplicated == 63 * CHUNK
    assert lab.read_back(backup_id) == bytes_of(disk)


def test_an_incremental_reads_what_changed_and_the_samples() -> None:
    disk = small_disk(chunks=400)
    lab = Lab()
    first, _ = lab.back_up(disk)
    disk.write_page(3 * CHUNK // PAGE + 1, b"changed")
    before = bytes_of(disk)
    disk.reads = 0
    second, done = lab.back_up(disk, parent=first, changes=[Extent(3 * CHUNK + PAGE, PAGE)])
    assert done.decision.mode is Mode.INCREMENTAL
    assert (done.record.bytes_read, done.record.bytes_new) == (CHUNK, CHUNK)
    assert disk.reads == (1 + sampling.COUNT_MIN) * CHUNK
    assert lab.read_back(second) == before


def test_what_was_dirtied_and_not_changed_is_not_stored() -> None:
    disk = small_disk()
    lab = Lab()
    first, _ = lab.back_up(disk)
    second, done = lab.back_up(disk, parent=first, changes=[Extent(0, 5 * CHUNK)])
    assert (done.record.bytes_new, done.record.bytes_deduplicated) == (0, 5 * CHUNK)
    assert lab.read_back(second) == bytes_of(disk)


def test_an_incremental_without_a_change_has_the_same_root() -> None:
    disk = small_disk()
    lab = Lab()
    first, full = lab.back_up(disk)
    second, done = lab.back_up(disk, parent=first)
    assert done.record.root == full.record.root
    assert lab.read_back(second) == bytes_of(disk)


def _spoil(lab: Lab, folder: str) -> str:
    """Flip a bit in the only pack of a kind, and have it found; return its name."""
    (name,) = [found.name for found in lab.storage.list_objects(folder)]
    data = bytearray(lab.storage.get(name))
    data[pack.HEADER.size + pack.BLOB.size + 20] ^= 1
    lab.storage.delete(name)
    lab.storage.put_if_absent(name, bytes(data))
    assert verify(lab.repository).bad == (name,)
    return name


def test_an_incremental_stores_again_what_lies_in_a_bad_pack() -> None:
    disk = small_disk(chunks=400)
    lab = Lab()
    first, _ = lab.back_up(disk)
    before = bytes_of(disk)
    _spoil(lab, "packs/")
    disk.write_page(3 * CHUNK // PAGE + 1, b"changed")
    trimmed = Extent(7 * CHUNK, CHUNK, zero=True)
    for page in range(trimmed.start // PAGE, trimmed.end // PAGE):
        disk.pages.pop(page, None)
    second, done = lab.back_up(
        disk, parent=first, changes=[Extent(3 * CHUNK + PAGE, PAGE), trimmed]
    )
    assert done.decision.mode is Mode.INCREMENTAL
    assert done.record.bytes_read >= 399 * CHUNK
    assert lab.read_back(second) == bytes_of(disk)
    assert lab.read_back(first) == before  # only its first chunk was hurt, and is whole again
    third, again = lab.back_up(disk, parent=second)
    assert again.record.bytes_read == 0
    assert lab.read_back(third) == bytes_of(disk)


def test_a_parent_whose_map_lies_in_a_bad_pack_means_a_full_read() -> None:
    disk = small_disk(chunks=40)
    lab = Lab()
    first, _ = lab.back_up(disk)
    _spoil(lab, "meta/")
    second, done = lab.back_up(disk, parent=first)
    assert (done.decision.mode, done.decision.code) == (Mode.FULL, Reason.PARENT_DAMAGED)
    assert done.decision.is_fallback
    assert lab.read_back(second) == bytes_of(disk)
    assert lab.read_back(first) == bytes_of(disk)


def test_a_parent_that_is_damaged_unnoticed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = small_disk(chunks=40)
    lab = Lab()
    first, _ = lab.back_up(disk)

    def fail(_writer: DiskWriter) -> list[Extent]:
        raise Corrupt("a node does not decode", kind="map-corrupt")

    monkeypatch.setattr(DiskWriter, "list_lost", fail)
    with pytest.raises(Corrupt):
        lab.back_up(disk, parent=first)


def test_trims_become_zeros_without_being_read() -> None:
    disk = small_disk()
    lab = Lab()
    first, _ = lab.back_up(disk)
    for page in range(2 * CHUNK // PAGE, 10 * CHUNK // PAGE):
        disk.pages.pop(page, None)
    disk.reads = 0
    changes = [Extent(2 * CHUNK, 8 * CHUNK, zero=True)]
    second, done = lab.back_up(disk, parent=first, changes=changes)
    assert done.record.bytes_read == 0
    assert disk.reads <= sampling.COUNT_MIN * CHUNK
    assert lab.read_back(second) == bytes_of(disk)


def test_a_second_full_read_stores_nothing_again() -> None:
    disk = small_disk()
    lab = Lab()
    first, full = lab.back_up(disk)
    _, done = lab.back_up(disk, parent=first, full=True)
    assert done.decision.mode is Mode.FULL
    assert (done.record.bytes_new, done.record.bytes_read) == (0, disk.size_bytes)
    assert done.record.root == full.record.root


def test_a_grown_disk_is_read_in_full_and_compared_with_its_parent() -> None:
    disk = small_disk(chunks=3)
    lab = Lab()
    first, _ = lab.back_up(disk)
    grown = SparseDisk(7 * CHUNK + 512)
    grown.pages = dict(disk.pages)
    grown.write_page(7 * CHUNK // PAGE, b"end")
    second, done = lab.back_up(grown, parent=first, full=True)
    assert done.record.bytes_deduplicated == 3 * CHUNK
    assert lab.read_back(second) == bytes_of(grown)


def lie(disk: SparseDisk, moment: str) -> int:
    """Change a chunk that will be sampled at a moment, and return where."""
    work = Worklist(size_bytes=disk.size_bytes, chunk_size=CHUNK)
    index = sampling.choose(work, seed=moment)[4]
    disk.write_page(index * CHUNK // PAGE, b"changed in secret")
    return index * CHUNK


def test_change_tracking_that_lies_is_caught_and_everything_is_read() -> None:
    disk = small_disk(chunks=400)
    lab = Lab()
    first, _ = lab.back_up(disk)
    place = lie(disk, "s2")
    second, done = lab.back_up(disk, parent=first, changes=[])
    assert (done.decision.mode, done.decision.code) == (Mode.FULL, Reason.SAMPLE_DIFFERED)
    assert done.suspect_reason is not None
    assert str(place) in done.suspect_reason
    assert (done.record.mode, done.record.mode_reason) == (Mode.FULL, done.suspect_reason)
    assert lab.read_back(second) == bytes_of(disk)


def test_without_sampling_the_lie_would_have_gone_unseen() -> None:
    """The control of the test before: what sampling does not look at is inherited."""
    disk = small_disk(chunks=400)
    lab = Lab()
    first, _ = lab.back_up(disk)
    work = Worklist(size_bytes=disk.size_bytes, chunk_size=CHUNK)
    sampled = set(sampling.choose(work, seed="s2"))
    index = next(place for place in range(400) if place not in sampled)
    disk.write_page(index * CHUNK // PAGE, b"changed in secret")
    second, done = lab.back_up(disk, parent=first, changes=[])
    assert done.suspect_reason is None
    assert lab.read_back(second) != bytes_of(disk)


def test_tracking_lost_at_the_last_moment_means_a_full_read() -> None:
    disk = small_disk()
    lab = Lab()
    first, _ = lab.back_up(disk)
    disk.write_page(7, b"changed")
    session_id = lab.begin(first)
    with served(disk) as view:
        view.changes_error = Unavailable("the bitmap is gone", kind="tracking-lost")
        done = lab.transfer(view, session_id=session_id, parent=first)
    assert done.decision.code is Reason.TRACKING_LOST
    assert "the bitmap is gone" in done.record.mode_reason
    assert done.suspect_reason is None
    lab.commit(session_id)
    assert lab.read_back(session_id) == bytes_of(disk)


def test_a_source_that_does_not_answer_is_not_mistaken_for_lost_tracking() -> None:
    disk = small_disk()
    lab = Lab()
    first, _ = lab.back_up(disk)
    session_id = lab.begin(first)
    with served(disk) as view:
        view.changes_error = Unavailable("the hypervisor is away")
        with pytest.raises(Unavailable, match="away"):
            lab.transfer(view, session_id=session_id, parent=first)


def test_a_reader_that_fails_half_way_ends_everything_and_nothing_is_finished() -> None:
    before = threading.active_count()
    disk = small_disk(chunks=200)

    def fail(offset: int, _length: int) -> None:
        if offset >= 100 * CHUNK:
            raise OSError(5, "input/output error")

    disk.on_read = fail
    lab = Lab()
    session_id = lab.begin()
    with served(disk) as view:
        threads = threading.active_count()
        with pytest.raises(Unavailable, match="error 5"):
            lab.transfer(view, session_id=session_id)
        assert settled(lambda: threading.active_count() <= threads)
    assert settled(lambda: threading.active_count() <= before)
    assert lab.repository.find_finished_disk(session_id, KEY, moment=session_id) is None


def test_a_server_that_is_gone_is_an_error_and_leaves_no_threads() -> None:
    before = threading.active_count()
    lab = Lab()
    session_id = lab.begin()
    with served(small_disk()) as view:
        pass
    with pytest.raises(Unavailable):
        lab.transfer(view, session_id=session_id)
    assert settled(lambda: threading.active_count() <= before)


def test_a_server_that_dies_half_way_is_an_error_and_the_next_attempt_succeeds() -> None:
    disk = small_disk(chunks=200)
    lab = Lab()
    session_id = lab.begin()
    reached = threading.Event()

    def pause(offset: int, _length: int) -> None:
        if offset >= 100 * CHUNK:
            reached.set()
            raise ConnectionResetError

    disk.on_read = pause
    with served(disk) as view, pytest.raises(SendenseError):
        lab.transfer(view, session_id=session_id)
    assert reached.is_set()
    disk.on_read = lambda _offset, _length: None
    with served(disk) as view:
        lab.transfer(view, session_id=session_id)
    lab.commit(session_id)
    assert lab.read_back(session_id) == bytes_of(disk)


def test_an_attempt_goes_on_where_the_last_one_stopped() -> None:
    disk = SparseDisk(96 * units.MIB)
    disk.fill(0, disk.size_bytes, content=random.Random(9).randbytes)
    lab = Lab()
    session_id = lab.begin()

    def fail(offset: int, _length: int) -> None:
        if offset >= 80 * units.MIB:
            raise OSError(5, "input/output error")

    disk.on_read = fail
    with served(disk) as view, pytest.raises(SendenseError):
        lab.transfer(view, session_id=session_id)
    disk.on_read = lambda _offset, _length: None
    disk.reads = 0
    with served(disk) as view:
        done = lab.transfer(view, session_id=session_id)
    assert disk.reads < 70 * units.MIB  # at least the first pack was durable
    assert done.record.bytes_read == done.record.bytes_new == disk.size_bytes
    assert done.record.bytes_stored > disk.size_bytes
    assert lab.progress.snapshot().bytes_read == disk.size_bytes
    lab.commit(session_id)
    assert lab.read_back(session_id) == bytes_of(disk)


@pytest.mark.parametrize("phase", [Phase.LISTING, Phase.SAMPLING, Phase.TRANSFERRING])
def test_cancelling_works_within_two_seconds_in_every_phase(phase: Phase) -> None:
    disk = small_disk(chunks=300)
    lab = Lab()
    first, _ = lab.back_up(disk)
    session_id = lab.begin(first)
    entered, release = threading.Event(), threading.Event()

    def block(_offset: int, _length: int) -> None:
        if lab.progress.snapshot().phase is phase:
            entered.set()
            release.wait(WAIT_SECONDS)

    with served(disk) as plain:
        disk.on_read = block
        view = BlockedView(plain, block) if phase is Phase.LISTING else plain
        view.changes = [Extent(0, 200 * CHUNK)]
        cancelled = Canceller(entered, lab)
        with pytest.raises(Cancelled):
            lab.transfer(view, session_id=session_id, parent=first)
        assert cancelled.seconds() < 2
        release.set()
    assert lab.repository.find_finished_disk(session_id, KEY, moment=session_id) is None


class BlockedView(View):
    """A view whose source hangs when it is asked what changed."""

    def __init__(self, view: View, block: Callable[[int, int], None]) -> None:
        super().__init__(view.address, view.disk)
        self._block = block

    def list_changed(self):  # type: ignore[no-untyped-def] # noqa: ANN201 - as in View
        self._block(0, 0)
        yield Extent(0, CHUNK)


class Canceller:
    """Cancels a lab's transfer as soon as an event is set, and takes the time from there."""

    def __init__(self, entered: threading.Event, lab: Lab) -> None:
        self._at = 0.0
        self._thread = threading.Thread(target=self._run, args=(entered, lab))
        self._thread.start()

    def _run(self, entered: threading.Event, lab: Lab) -> None:
        assert entered.wait(WAIT_SECONDS)
        self._at = time.monotonic()
        lab.control.cancel()

    def seconds(self) -> float:
        now = time.monotonic()
        self._thread.join()
        return now - self._at


def settled(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true before a deadline."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def test_progress_tells_everything_when_it_is_done() -> None:
    disk = small_disk(chunks=30)
    lab = Lab()
    lab.back_up(disk)
    shown = lab.progress.snapshot()
    assert (shown.phase, shown.fraction) == (Phase.FINISHING, 1.0)
    assert shown.bytes_total == shown.bytes_read == shown.bytes_new == 30 * CHUNK
    assert 0 < shown.bytes_stored < shown.bytes_new


@pytest.mark.parametrize("level", [0, 1, 19])
def test_every_compression_level_and_none_come_back(level: int) -> None:
    disk = small_disk(chunks=6)
    lab = Lab()
    lab.settings = EngineSettings(level=level)
    backup_id, done = lab.back_up(disk)
    assert lab.read_back(backup_id) == bytes_of(disk)
    assert (done.record.bytes_stored >= disk.size_bytes) == (level == 0)


def test_one_connection_and_one_compressor_are_enough() -> None:
    disk = small_disk()
    lab = Lab()
    lab.settings = replace(lab.settings, connections=1, threads=1)
    backup_id, _ = lab.back_up(disk)
    assert lab.read_back(backup_id) == bytes_of(disk)
