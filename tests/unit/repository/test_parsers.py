"""Forged objects: every parser refuses what no writer of ours puts, though all checksums fit."""

import dataclasses
import random
import struct
from collections.abc import Callable, Mapping

import blake3
import pytest
import zstandard

from sendense.core.errors import Corrupt
from sendense.repository import chunk, diskmap, format, index, pack, record, session
from sendense.repository.chunk import Codec
from sendense.repository.format import CHECK_LENGTH, Frame
from sendense.repository.index import Segment, Table, build_table, seal_segment
from sendense.repository.keyed import Keyed
from sendense.repository.keys import UNSEALED, Keys
from sendense.repository.manifest import DiskRecord, Manifest
from sendense.repository.pack import BlobType, Entry, Kind, PackBuilder, PackRef
from sendense.repository.session import CheckpointHead
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY, Kit

PLAIN = random.Random(9).randbytes(5000)
ID = UNSEALED.identify(PLAIN)


@dataclasses.dataclass(frozen=True)
class _Extended:
    id: str
    more: Mapping[str, int] = dataclasses.field(
        default_factory=dict, metadata=record.ABSENT_WHERE_EMPTY
    )


def _checked(head: bytes) -> bytes:
    """Return a header with its own short checksum at its end made right."""
    return head[:-CHECK_LENGTH] + format.check_of(head[:-CHECK_LENGTH])


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _refuses(call: Callable[[], object], words: str) -> None:
    with pytest.raises(Corrupt, match=words):
        call()


class TestFrames:
    BODY = b"{}"
    SEALED = format.seal_frame(UNSEALED, Frame.DONE, BODY)

    def test_a_frame_of_a_later_version_is_refused(self) -> None:
        head = _put(self.SEALED[:-32], 8, struct.pack("<H", 2))
        forged = head + blake3.blake3(head).digest()
        _refuses(lambda: format.open_frame(UNSEALED, Frame.DONE, forged, name="x"), "version 2")

    def test_a_frame_that_is_too_large_is_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = MemoryStorage()
        storage.put_if_absent("x", self.SEALED)
        monkeypatch.setattr(format, "FRAME_BODY_MAX", 1)
        _refuses(lambda: format.get_frame(Keyed(storage, UNSEALED), Frame.DONE, "x"), "too many")

    @pytest.mark.parametrize("field", [b"\x01A", b"\x00", b"\x02\xff\xff", b"\x01ab"])
    def test_a_session_s_field_holds_an_id_and_zeros(self, field: bytes) -> None:
        _refuses(lambda: format.unpack_session(field.ljust(64, b"\0"), name="x"), "its session")

    @pytest.mark.parametrize(
        "value",
        [
            {},
            {"id": "00" * 32, "size": -1},
            {"id": "00" * 32, "size": True},
            {"id": "zz", "size": 1},
            {"id": 5, "size": 1},
        ],
    )
    def test_a_record_that_does_not_fit_its_type_is_refused(self, value: object) -> None:
        _refuses(lambda: record.from_json(session.CheckpointPack, value, name="x"), "does not fit")


class TestChunks:
    def test_what_may_be_absent_is_absent_where_it_is_empty(self) -> None:
        full = _Extended("a", {"b": 1})
        assert record.dump(full) == b'{"id":"a","more":{"b":1}}'
        assert record.dump(_Extended("a")) == b'{"id":"a"}'
        for one in (full, _Extended("a")):
            assert record.load(_Extended, record.dump(one), name="x") == one
        for text in (b'{"id":"a","more":{}}', b'{"id":"a","beside":1}', b"{}", b'{"id":"a","b":1}'):
            _refuses(lambda text=text: record.load(_Extended, text, name="x"), "amiss")  # type: ignore[misc]

    def test_what_cannot_be_compressed_is_stored_as_it_is(self) -> None:
        data = random.Random(1).randbytes(chunk.SAMPLED_LENGTH_MIN)
        assert chunk.encode(data, chunk.PROBED_LEVEL_MIN) == (Codec.RAW, data)
        assert chunk.encode(bytes(999), chunk.LEVEL_OFF) == (Codec.RAW, bytes(999))

    def test_what_can_be_is_compressed_at_a_level_that_probes(self) -> None:
        data = bytes(range(256)) * (chunk.SAMPLED_LENGTH_MIN // 256)
        for part in (data, data[: CHUNK // 64]):
            codec, stored = chunk.encode(part, chunk.PROBED_LEVEL_MIN)
            assert codec is Codec.ZSTD
            assert len(stored) < len(part)

    @pytest.mark.parametrize("claimed", [-1, 0, 1])
    def test_a_blob_of_another_length_than_it_claims_is_refused(self, claimed: int) -> None:
        whole = zstandard.ZstdCompressor().compress(bytes(3000))
        assert struct.unpack_from("<H", whole, 5)[0] == 3000 - 256
        forged = _put(whole, 5, struct.pack("<H", 3000 - 256 + claimed))
        if claimed == 0:
            assert chunk.decompress(Codec.ZSTD, forged, plain_length=3000) == bytes(3000)
        else:
            _refuses(
                lambda: chunk.decompress(Codec.ZSTD, forged, plain_length=3000 + claimed),
                "does not decode",
            )

    def test_an_unknown_codec_and_damaged_bytes_are_refused(self) -> None:
        _refuses(lambda: chunk.decompress(7, b"x", plain_length=1), "unknown codec")
        _refuses(lambda: chunk.decompress(Codec.RAW, b"x", plain_length=2), "raw bytes")
        fine = zstandard.ZstdCompressor().compress(PLAIN)
        _refuses(lambda: chunk.decompress(Codec.ZSTD, fine, plain_length=9), "not of 9 bytes")
        broken = zstandard.ZstdCompressor().compress(PLAIN)[:-9]
        _refuses(
            lambda: chunk.decompress(Codec.ZSTD, broken, plain_length=len(PLAIN)), "not decode"
        )


def _pack(kind: Kind = Kind.DATA, keys: Keys = UNSEALED) -> tuple[bytes, PackRef]:
    builder = PackBuilder(kind, session_id="s", salt=bytes(32), keys=keys)
    builder.add(BlobType.CHUNK, Codec.RAW, keys.identify(PLAIN), PLAIN, plain_length=len(PLAIN))
    sealed = builder.seal()
    return b"".join(sealed.buffers), sealed.ref


class TestPacks:
    @pytest.mark.parametrize(
        ("at", "new", "words"),
        [
            (0, b"NOTAPACK", "magic"),
            (8, struct.pack("<H", 9), "version 9"),
            (10, struct.pack("<H", 2), "flags 2"),
            (12, b"\1", "sealed with a key"),
            (168, b"\1", "sealed with a key"),
            (192, b"\1", "sealed with a key"),
        ],
    )
    def test_a_header_is_refused(self, at: int, new: bytes, words: str) -> None:
        head = _checked(_put(_pack()[0][: pack.HEADER.size], at, new))
        _refuses(lambda: pack.parse_header(head, keys=UNSEALED, name="x"), words)

    def test_a_header_that_is_damaged_or_cut_off_is_refused(self) -> None:
        head = _pack()[0][: pack.HEADER.size]
        _refuses(
            lambda: pack.parse_header(_put(head, 50, b"??"), keys=UNSEALED, name="x"), "checksum"
        )
        _refuses(lambda: pack.parse_header(head[:-1], keys=UNSEALED, name="x"), "shorter")

    def test_a_blob_is_refused_where_its_header_does_not_fit_it(self) -> None:
        whole, ref = _pack()
        blob = whole[pack.HEADER.size :][: pack.BLOB.size + len(PLAIN)]

        def opened(data: bytes, blob_id: bytes = ID) -> bytes:
            return pack.open_blob(UNSEALED, ref, pack.HEADER.size, data, blob_id)

        assert opened(blob) == PLAIN
        _refuses(lambda: opened(blob[:20]), "cut off")
        _refuses(lambda: opened(blob[:-1]), "bytes of 5000")
        _refuses(lambda: opened(blob, bytes(32)), "lies where")
        _refuses(lambda: opened(_put(blob, 5, b"\1")), "no blob's header")
        flagged = _checked(_put(blob[: pack.BLOB.size], 6, b"\1")) + PLAIN
        _refuses(lambda: opened(flagged), "unknown kind or size")
        node = _checked(_put(blob[: pack.BLOB.size], 4, bytes([BlobType.NODE]))) + PLAIN
        _refuses(lambda: opened(node), "decodes to bytes with id")

    @pytest.mark.parametrize(
        ("at", "new", "words"),
        [
            (32, struct.pack("<Q", 300), "leads to byte 300"),
            (48, bytes([9]), "unknown kind"),
            (40, struct.pack("<I", 4999), "leaves out"),
        ],
    )
    def test_a_directory_is_refused(self, at: int, new: bytes, words: str) -> None:
        whole, ref = _pack()
        start = len(whole) - pack.FOOTER.size - pack.ENTRY.size
        directory = _put(whole[start : start + pack.ENTRY.size], at, new)
        footer = whole[-pack.FOOTER.size : -32] + blake3.blake3(directory).digest()
        storage = MemoryStorage()
        storage.put_if_absent(ref.name, whole[:start] + directory + footer)
        _refuses(lambda: pack.read_directory(Keyed(storage, UNSEALED), ref), words)

    def test_a_pack_of_another_size_than_the_index_says_is_refused(self) -> None:
        whole, ref = _pack()
        storage = MemoryStorage()
        storage.put_if_absent(ref.name, whole + b"more")
        _refuses(lambda: pack.read_directory(Keyed(storage, UNSEALED), ref), "bytes where")

    def test_a_whole_pack_in_the_wrong_folder_or_size_is_refused(self) -> None:
        whole, ref = _pack()
        seen: list[Entry] = []
        pack.verify(whole, ref, UNSEALED, on_blob=seen.append)
        assert [entry.id for entry in seen] == [ID]
        wrong = dataclasses.replace(ref, kind=Kind.META)
        _refuses(lambda: pack.verify(whole, wrong, UNSEALED), "wrong folder")
        longer = dataclasses.replace(ref, size=ref.size + 1)
        _refuses(lambda: pack.verify(whole, longer, UNSEALED), "bytes, not")

    def test_a_pack_whose_name_is_no_hash_is_refused(self) -> None:
        storage = MemoryStorage()
        storage.put_if_absent("packs/ab/other", _pack()[0])
        _refuses(lambda: pack.read_ref(Keyed(storage, UNSEALED), "packs/ab/other"), "not a pack's")

    def test_a_footer_that_does_not_describe_its_pack_is_refused(self) -> None:
        whole, ref = _pack()
        storage = MemoryStorage()
        storage.put_if_absent(ref.name, _put(whole, len(whole) - pack.FOOTER.size, b"?"))
        _refuses(lambda: pack.read_directory(Keyed(storage, UNSEALED), ref), "footer")

    def test_a_sealed_pack_is_refused_where_its_key_is_not_the_index_s(self) -> None:
        whole, ref = _pack(keys=kit.KEYS)
        _, other = _pack(keys=kit.KEYS)
        pack.verify(whole, ref, kit.KEYS)
        swapped = dataclasses.replace(ref, wrapped=other.wrapped)
        _refuses(lambda: pack.verify(whole, swapped, kit.KEYS), "not the one that the index has")
        blob = whole[pack.HEADER.size :]
        broken = dataclasses.replace(ref, wrapped=bytes(len(ref.wrapped)))
        _refuses(
            lambda: pack.open_blob(kit.KEYS, broken, pack.HEADER.size, blob, ID), "does not open"
        )

    def test_a_blob_whose_seal_is_broken_is_refused_decoded_and_not(self) -> None:
        whole, ref = _pack(keys=kit.KEYS)
        start, length = pack.HEADER.size, len(PLAIN) + kit.KEYS.overhead
        blob_id = kit.KEYS.identify(PLAIN)
        blob = whole[start : start + pack.BLOB.size + length]
        assert pack.open_blob(kit.KEYS, ref, start, blob, blob_id) == PLAIN
        _, stored = pack.unseal_blob(kit.KEYS, ref, start, blob)
        assert bytes(stored) == PLAIN
        changed = _put(blob, len(blob) - 1, bytes([blob[-1] ^ 1]))
        _refuses(lambda: pack.open_blob(kit.KEYS, ref, start, changed, blob_id), "seal of blob")
        _refuses(lambda: pack.unseal_blob(kit.KEYS, ref, start, changed), "seal of blob")


ENTRIES = [
    (0, Entry(bytes([number]) * 32, 208 + 100 * number, 40, 40, 1, 0)) for number in range(1, 4)
]
REF = PackRef(bytes(32), Kind.DATA, 1000)


def _segment(table: Table | None = None, ref: PackRef = REF) -> bytes:
    made = build_table(ENTRIES) if table is None else table
    return b"".join(seal_segment(made, [ref], session_id="s", keys=UNSEALED))


class TestSegments:
    def test_a_segment_is_refused_where_an_entry_leads_astray(self) -> None:
        Segment(memoryview(_segment()), keys=UNSEALED, name="x")
        table = build_table(ENTRIES)
        backwards = Table(table.ids.take(slice(None, None, -1)), table.places[::-1])  # type: ignore[arg-type]
        strange = dataclasses.replace(REF, kind=9)  # type: ignore[arg-type]
        for data, words in (
            (_segment(backwards), "out of order"),
            (_segment(ref=strange), "unknown kind 9"),
            (_segment(ref=dataclasses.replace(REF, size=300)), "out of its pack"),
        ):
            _refuses(lambda data=data: Segment(memoryview(data), keys=UNSEALED, name="x"), words)  # type: ignore[misc]

    def test_a_segment_of_a_later_version_or_with_a_false_fan_out_is_refused(self) -> None:
        whole = _segment()
        _refuses(lambda: Segment(memoryview(whole[:40]), keys=UNSEALED, name="x"), "too few")
        _refuses(
            lambda: Segment(memoryview(b"?" + whole[1:]), keys=UNSEALED, name="x"), "its header"
        )
        head = _checked(_put(whole[: index.HEADER.size], 8, struct.pack("<H", 2)))
        later = head + whole[len(head) :]
        _refuses(lambda: Segment(memoryview(later), keys=UNSEALED, name="x"), "version 2")
        _refuses(lambda: Segment(memoryview(whole), keys=kit.KEYS, name="x"), "not known here")
        body = _put(whole[:-32], index.HEADER.size + index.PACK.size, b"\1")
        false = body + blake3.blake3(body).digest()
        _refuses(lambda: Segment(memoryview(false), keys=UNSEALED, name="x"), "fan-out")

    def test_nothing_is_found_in_an_empty_table(self) -> None:
        assert list(build_table([]).find(index.Ids.of([ID]))) == [-1]

    def test_a_session_finds_what_it_has_settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(index, "RECENT_MAX", 2)
        made = index.SessionIndex()
        for ordinal, entry in ENTRIES:
            made.add(ordinal, entry)
        ids = [entry.id for _, entry in ENTRIES]
        assert not made.is_recent(ids[0])
        assert list(made.find_known([*ids, ID])) == [True, True, True, False]
        assert list(made.find_known([])) == []


def test_a_map_s_node_that_is_cut_off_or_spells_out_zeros_is_refused() -> None:
    slots = [ID] + [chunk.ZERO_ID] * (diskmap.FAN_OUT - 1)
    node = diskmap.encode_node(0, slots)
    assert diskmap.decode_node(node, level=0) == slots
    _refuses(lambda: diskmap.decode_node(node[:9], level=0), "cut off")
    _refuses(lambda: diskmap.decode_node(node, level=1), "not one of level 1")
    _refuses(lambda: diskmap.decode_node(node[:-32] + bytes(32), level=0), "zero id")


class TestSessions:
    HEAD = CheckpointHead("s", 2000, "a", 1, 1, 0, 0, 0, ())

    def _refuses_checkpoint(self, body: bytes) -> None:
        storage = MemoryStorage()
        storage.put_if_absent("x", format.seal_frame(UNSEALED, Frame.CHECKPOINT, body))
        _refuses(lambda: session.get_checkpoint(Keyed(storage, UNSEALED), "x"), "do not parse")

    def test_a_checkpoint_is_refused_where_its_runs_do_not_parse(self) -> None:
        self._refuses_checkpoint(b"\1")
        text = record.dump(self.HEAD)
        start = struct.pack("<I", len(text)) + text
        self._refuses_checkpoint(start + b"cut off")
        for run in (
            session.RUN.pack(0, 0, session.RUN_ZERO, bytes(7)),
            session.RUN.pack(0, 1, 7, bytes(7)),
            session.RUN.pack(0, 1, session.RUN_IDS, bytes(7)) + bytes(31),
            session.RUN.pack(0, 1, session.RUN_ZERO, b"\1" * 7),
        ):
            self._refuses_checkpoint(start + run)

    def test_the_record_of_another_disk_is_refused(self) -> None:
        storage = MemoryStorage()
        repository = Kit(storage).create()
        repository.begin_session("s")
        kit.write_disk(repository, "s", bytes(CHUNK), moment="m")
        data = storage.get(session.done_name(kit.KEYS, "s", KEY, "m"))
        storage.put_if_absent(session.done_name(kit.KEYS, "s", KEY, "n"), data)
        _refuses(lambda: repository.find_finished_disk("s", KEY, moment="n"), "another disk")


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_size": CHUNK + 1},
        {"chunk_size": 1},
        {"size_bytes": 0},
        {"size_bytes": 1 << 63},
        {"root": b"short"},
    ],
)
@pytest.mark.parametrize("where", [Frame.MANIFEST, Frame.OUTCOME])
def test_a_disk_with_impossible_numbers_is_refused(change: dict[str, object], where: Frame) -> None:
    storage = MemoryStorage()
    repository = Kit(storage).create()
    made = kit.back_up(repository, "one", PLAIN)
    assert not made.partial
    outcome = repository.find_outcome("one")
    assert outcome is not None
    disk: DiskRecord = dataclasses.replace(made.disks[0], **change)  # type: ignore[arg-type]
    forged: Manifest = dataclasses.replace(made, disks=(disk,))
    sealed, name = (
        (record.dump(forged), made.name)
        if where is Frame.MANIFEST
        else (record.dump(dataclasses.replace(outcome, manifest=forged)), "outcomes/one")
    )
    storage.delete(name)
    storage.put_if_absent(name, format.seal_frame(kit.KEYS, where, sealed))
    opened = Kit(storage).open()
    if where is Frame.MANIFEST:
        storage.delete("outcomes/one")  # else it would be read from there
        _refuses(opened.list_backups, "impossible")
    else:
        _refuses(lambda: opened.find_outcome("one"), "impossible")
