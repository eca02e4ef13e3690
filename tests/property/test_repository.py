"""What must hold for every disk, every history and every piece of junk."""

import itertools
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sendense.core.errors import Corrupt
from sendense.repository import chunk, diskmap, format, index, pack, session
from sendense.repository.check import check
from sendense.repository.chunk import ZERO_ID
from sendense.repository.diskmap import MapBuilder, MapReader
from sendense.repository.format import Frame
from sendense.repository.keyed import Keyed
from sendense.repository.keys import UNSEALED, Keys
from sendense.repository.pack import BlobType, Entry, Kind, PackBuilder, PackRef, SealedPack
from sendense.repository.storage.base import Storage
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

ids = st.integers(min_value=1, max_value=30).map(lambda n: bytes([n]) * 32)
few = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
fewer = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])


class Nodes:
    """Nodes by id, as a repository keeps them."""

    def __init__(self) -> None:
        self.by_id: dict[bytes, bytes] = {}

    def store(self, data: bytes) -> bytes:
        node_id = kit.KEYS.identify_node(data)
        self.by_id[node_id] = data
        return node_id


@st.composite
def changes(draw: st.DrawFn, count: int) -> list[tuple[int, int, bytes]]:
    """Runs (start, count, id) in ascending order; the zero id for runs of zeros."""
    marks = draw(st.lists(st.integers(0, count - 1), max_size=12, unique=True).map(sorted))
    runs = []
    if draw(st.booleans()):
        marks = [0, *marks[1:]] if marks else [0]  # disks are trimmed as a whole, too
    for start, end in itertools.pairwise([*marks, count]):
        if draw(st.booleans()):
            runs.append((start, 1, draw(ids)))
        else:
            runs.append((start, draw(st.just(end - start) | st.integers(1, end - start)), ZERO_ID))
    return runs


def _apply(builder: MapBuilder, runs: list[tuple[int, int, bytes]]) -> bytes:
    for start, count, chunk_id in runs:
        if chunk_id == ZERO_ID:
            builder.put_zero(start, count)
        else:
            builder.put(start, chunk_id)
    return builder.finish()


@few
@given(st.data(), st.sampled_from([1, 2, 255, 256, 257, 600, 65_536, 65_537, 200_000, 1 << 25]))
def test_a_map_is_what_was_put_on_what_was_there(data: st.DataObject, count: int) -> None:
    nodes = Nodes()
    # Much smaller ones too, whose map is some levels lower.
    small = data.draw(st.integers(1, count) | st.integers(1, min(count, 600)))
    first, second = data.draw(changes(small)), data.draw(changes(count))
    root = _apply(MapBuilder(small, store=nodes.store), first)
    alone = data.draw(st.sets(st.sampled_from(sorted(nodes.by_id)))) if nodes.by_id else set()
    parent = MapReader(
        root,
        chunk_count=small,
        load=nodes.by_id.__getitem__,
        load_many=lambda ids: {one: nodes.by_id[one] for one in ids if one not in alone},
    )
    # What is expected, more or less, and what is asked for besides, must not matter.
    parent.expect(iter(sorted(data.draw(st.sets(st.integers(0, count >> 8), max_size=20)))))
    parent.get(data.draw(st.integers(0, count)))
    root = _apply(MapBuilder(count, store=nodes.store, parent=parent), second)

    model: dict[int, bytes] = {}
    for start, length, chunk_id in [*first, *second]:
        if chunk_id == ZERO_ID:
            model = {at: one for at, one in model.items() if not start <= at < start + length}
        else:
            model[start] = chunk_id
    reader = MapReader(root, chunk_count=count, load=nodes.by_id.__getitem__)
    assert {at: reader.get(at) for at in model} == model
    seen: dict[int, bytes] = {}
    position = 0
    for run in reader.list_runs():
        assert run.start == position
        position += run.count
        seen |= {run.start + number: one for number, one in enumerate(run.ids)}
    assert (position, seen) == (count, model)

    # The same content has the same root, however it came about.
    anew = MapBuilder(count, store=nodes.store)
    assert _apply(anew, [(at, 1, model[at]) for at in sorted(model)]) == root


@few
@given(st.binary(max_size=3000), st.sampled_from([0, 1, 19]), st.integers(1, 300))
def test_decoding_undoes_encoding(data: bytes, level: int, repeat: int) -> None:
    plain = (data or b"\0") * repeat
    codec, stored = chunk.encode(plain, level)
    assert len(stored) <= len(plain)
    assert chunk.decompress(codec, stored, plain_length=len(plain)) == plain
    with pytest.raises(Corrupt):
        chunk.decompress(codec, stored, plain_length=len(plain) + 1)


@few
@given(st.binary(max_size=100), st.integers(0, 40))
def test_zero_means_every_byte(data: bytes, zeros: int) -> None:
    for one in (data, bytes(zeros) + data + bytes(zeros), bytes(zeros)):
        assert chunk.is_zero(one) == (not any(one))
        assert chunk.is_zero(memoryview(bytearray(one))) == (not any(one))


@few
@given(st.lists(st.binary(min_size=32, max_size=32), max_size=80), st.binary(max_size=8))
def test_an_index_finds_what_it_holds_and_nothing_else(
    blob_ids: list[bytes], shared: bytes
) -> None:
    # Many ids with one prefix: what an attacker would make, and chance will not.
    blob_ids = [shared + blob_id[len(shared) :] for blob_id in blob_ids]
    held, others = blob_ids[::2], set(blob_ids[1::2]) - set(blob_ids[::2])
    entries = [(0, Entry(one, 208 + at, 1, 1, 1, 0)) for at, one in enumerate(held)]
    ref = PackRef(bytes(32), Kind.DATA, 10_000)
    buffers = index.seal_segment(index.build_table(entries), [ref], session_id="s", keys=UNSEALED)
    segment = index.Segment(memoryview(b"".join(buffers)), keys=UNSEALED, name="index/s-1.1.1")
    assert len(segment) == len(set(held))
    wanted = [*held, *others]
    if wanted:
        found = segment.find(index.Ids.of(wanted))
        assert [at >= 0 for at in found] == [True] * len(held) + [False] * len(others)
        first = {one: 208 + held.index(one) for one in held}
        for one, at in zip(held, found[: len(held)], strict=True):
            assert segment.place(int(at)).offset == first[one]


def _pack_of(keys: Keys, data: bytes) -> SealedPack:
    builder = PackBuilder(Kind.DATA, session_id="s", salt=bytes(32), keys=keys)
    builder.add(BlobType.CHUNK, 0, keys.identify(data), data, plain_length=len(data))
    return builder.seal()


def _samples(keys: Keys) -> dict[str, bytes]:
    sealed = _pack_of(keys, b"hello")
    head = session.CheckpointHead("s", 2000, "a", 1, 1, 3, 0, 0, ())
    runs = [session.MapRun(0, 2), session.MapRun(2, 1, bytes([7]) * 32)]
    checkpoint = session.dump_checkpoint(head, runs)
    table = index.build_table([(0, entry) for entry in sealed.entries])
    return {
        "pack": b"".join(sealed.buffers),
        "node": diskmap.encode_node(0, [bytes([3]) * 32] * 4 + [ZERO_ID] * 252),
        "segment": b"".join(index.seal_segment(table, [sealed.ref], session_id="s", keys=keys)),
        "frame": format.seal_frame(keys, Frame.OUTCOME, b"{}"),
        "checkpoint": format.seal_frame(keys, Frame.CHECKPOINT, checkpoint),
    }


KEYS: dict[str, Keys] = {"unsealed": UNSEALED, "sealed": kit.KEYS}
SAMPLES = {name: _samples(keys) for name, keys in KEYS.items()}


def _parse(keys: Keys, kind: str, data: bytes) -> None:
    storage = Keyed(MemoryStorage(), keys)
    if kind == "pack":
        ref = PackRef(bytes(32), Kind.DATA, len(data))
        storage.put_if_absent(ref.name, data)
        ref = pack.read_ref(storage, ref.name)
        for entry in pack.read_directory(storage, ref):
            blob = data[entry.offset : entry.offset + pack.BLOB.size + entry.stored_length]
            assert pack.open_blob(keys, ref, entry.offset, blob, entry.id) == b"hello"
    elif kind == "node":
        slots = diskmap.decode_node(data, level=0)
        assert diskmap.encode_node(0, slots) == data
    elif kind == "segment":
        segment = index.Segment(memoryview(data), keys=keys, name="x")
        assert len(segment) == 1
    elif kind == "frame":
        assert format.open_frame(keys, Frame.OUTCOME, data, name="x") == b"{}"
    else:
        storage.put_if_absent("sessions/s/c", data)
        session.get_checkpoint(storage, "sessions/s/c")


@few
@given(
    st.sampled_from(sorted(KEYS)),
    st.sampled_from(sorted(SAMPLES["sealed"])),
    st.integers(0, 10**6),
    st.integers(1, 255),
    st.sampled_from(["flip", "cut", "insert", "junk"]),
    st.binary(max_size=400),
)
def test_parsers_refuse_all_that_is_damaged(
    seal: str, kind: str, position: int, mask: int, way: str, junk: bytes
) -> None:
    keys, whole = KEYS[seal], SAMPLES[seal][kind]
    _parse(keys, kind, whole)
    at = position % len(whole)
    damaged = {
        "flip": whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :],
        "cut": whole[:at],
        "insert": whole[:at] + bytes([mask]) + whole[at:],
        "junk": whole[: at % 16] + junk,
    }[way]
    # A flipped salt or directory hash of a pack is only seen by the pack's name, and a flipped
    # id in a node by the node's id: they return, but never other bytes than were written.
    try:
        _parse(keys, kind, damaged)
    except Corrupt:
        return
    assert kind in {"pack", "node"}


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """A disk of up to 16 chunks at several times; each a change of the one before."""
    seed = draw(st.integers(0, 2**32))
    randomness = random.Random(seed)
    size = draw(st.integers(1, 16 * CHUNK // 512)) * 512
    states = [bytearray(size)]
    for _ in range(draw(st.integers(1, 4))):
        state = bytearray(states[-1])
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, size // 512 - 1)) * 512
            length = min(size - at, draw(st.integers(1, 600)) * 512)
            kind = draw(st.sampled_from(["random", "zero", "text"]))
            made = {
                "random": randomness.randbytes(length),
                "zero": bytes(length),
                "text": b"text" * (length // 4),
            }[kind]
            state[at : at + length] = made
        states.append(state)
    return [bytes(state) for state in states[1:]]


@pytest.mark.parametrize("kind", ["memory", "local"])
@fewer
@given(histories(), st.data())
def test_every_backup_of_any_history_comes_back(
    kind: str, states: list[bytes], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage: Storage = MemoryStorage() if kind == "memory" else LocalStorage(Path(folder))
        repository = Kit(storage).create()
        previous: int | None = None
        for number, state in enumerate(states):
            changed = None
            if previous is not None and data.draw(st.booleans(), label="incremental"):
                changed = kit.changed_chunks(states[previous], state)
            parent = f"b{previous}" if previous is not None else None
            kit.back_up(repository, f"b{number}", state, parent=parent, changed=changed)
            previous = number
        gone = data.draw(st.sets(st.sampled_from(range(len(states)))), label="deleted")
        for number in gone:
            repository.delete_backup(f"b{number}", who="tester", why="test")
        opened = Kit(storage).open()
        assert check(opened, read_data=True).problems == ()
        for number, state in enumerate(states):
            if number not in gone:
                assert kit.restore(opened, f"b{number}") == state
        storage.close()
