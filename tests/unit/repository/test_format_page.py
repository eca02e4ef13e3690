"""The worked examples of docs/format.md are bytes that the program reads and writes."""

import re
from pathlib import Path

import blake3
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from sendense.core import units
from sendense.repository import (
    chunk,
    descriptor,
    diskmap,
    format,
    index,
    pack,
    recovery,
    standalone_reader,
)
from sendense.repository.chunk import ZERO_ID
from sendense.repository.format import Frame
from sendense.repository.gc import records
from sendense.repository.keys import (
    TAG_LENGTH,
    UNSEALED,
    WRAPPED_NONE,
    DomainKeys,
    authenticate_descriptor,
)
from sendense.repository.pack import Kind, PackBuilder, PackRef

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "format.md").read_text()


def _example(name: str) -> bytes:
    found = re.search(rf"```hex {name}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, name
    lines = [line.split("  ", 1) for line in found[1].splitlines()]
    data = b"".join(bytes.fromhex(line) for _, line in lines)
    assert [int(offset, 16) for offset, _ in lines] == list(range(0, len(data), 16))
    return data


def test_the_example_pack_is_read_as_the_page_says() -> None:
    data = _example("pack")
    ref = PackRef(blake3.blake3(data).digest(), Kind.DATA, len(data))
    assert f"Its name is `{ref.name}`" in PAGE
    found: list[pack.Entry] = []
    pack.verify(data, ref, UNSEALED, on_blob=found.append)
    (entry,) = found
    assert (entry.offset, entry.stored_length, entry.plain_length) == (0xD0, 5, 5)
    blob = data[entry.offset : entry.offset + pack.BLOB.size + 5]
    assert pack.open_blob(UNSEALED, ref, entry.offset, blob, entry.id) == b"hello"
    assert f"`{entry.id.hex()}`" in PAGE
    header = pack.parse_header(data, keys=UNSEALED, name="example")
    assert header == pack.Header(Kind.DATA, "example", WRAPPED_NONE)


def test_the_example_pack_is_what_the_program_writes() -> None:
    builder = PackBuilder(Kind.DATA, session_id="example", salt=bytes(range(32)), keys=UNSEALED)
    chunk_id = blake3.blake3(b"hello").digest()
    builder.add(pack.BlobType.CHUNK, 0, chunk_id, b"hello", plain_length=5)
    assert b"".join(builder.seal().buffers) == _example("pack")


def test_the_example_node_is_read_and_written_as_the_page_says() -> None:
    data = _example("node")
    slots = diskmap.decode_node(data, level=0)
    assert [slot for slot, slot_id in enumerate(slots) if slot_id != ZERO_ID] == [9]
    assert slots[9] == blake3.blake3(b"hello").digest()
    assert diskmap.encode_node(0, slots) == data
    assert f"The node's id is `{UNSEALED.identify_node(data).hex()}`" in PAGE


def test_the_example_frame_is_read_and_written_as_the_page_says() -> None:
    data = _example("frame")
    assert format.open_frame(UNSEALED, Frame.TOMBSTONE, data, name="example") == b'{"example":1}'
    assert format.seal_frame(UNSEALED, Frame.TOMBSTONE, b'{"example":1}') == data


@pytest.mark.parametrize(
    ("struct", "title"),
    [
        (pack.HEADER, "header"),
        (pack.ENTRY, "directory entry"),
        (pack.FOOTER, "footer"),
    ],
)
def test_the_tables_add_up_to_the_sizes_in_the_code(struct: object, title: str) -> None:
    table = re.search(rf"\| offset \| size \| {title} \|\n\|[ -|]*\n((?:\|.*\n)+)", PAGE)
    assert table is not None
    rows = [line.split("|")[1:3] for line in table[1].splitlines()]
    position = 0
    for offset, size in rows:
        assert int(offset) == position
        position += int(size)
    assert position == getattr(struct, "size", None)


def test_the_example_recovery_key_is_what_the_program_writes_and_reads() -> None:
    text = recovery.to_text(bytes(range(32)))
    assert f"\n{text}\n" in PAGE
    assert recovery.parse(text) == bytes(range(32))


def test_the_keys_are_derived_as_the_page_says() -> None:
    root = bytes(range(32))
    made = DomainKeys(root)

    def key(use: str) -> bytes:
        assert f"`{use}`" in PAGE
        context = f"sendense repository v1 {use}"
        return blake3.blake3(root, derive_key_context=context).digest()

    def hash_of(use: str) -> bytes:
        return blake3.blake3(b"x", key=key(use)).digest()

    assert made.domain == key("domain")[:16]
    assert made.identify(b"x") == hash_of("chunk ids")
    assert made.identify_node(b"x") == hash_of("node ids")
    assert made.hash_name(b"x") == hash_of("names")
    assert made.start_mac().update(b"x").digest() == hash_of("index")
    assert authenticate_descriptor(root, b"x") == hash_of("descriptor")
    frame = format.seal_frame(made, Frame.DONE, b"{}")
    slot_key = blake3.blake3(frame[32:56], key=key("frames")).digest()
    assert AESGCM(slot_key).decrypt(bytes(12), frame[64:-32], frame[:64]) == b"{}"
    builder = PackBuilder(Kind.DATA, session_id="s", salt=bytes(32), keys=made)
    builder.add(pack.BlobType.CHUNK, 0, made.identify(b"x"), b"x", plain_length=1)
    whole = b"".join(builder.seal().buffers)
    pack_key = aes_key_unwrap(key("pack keys"), whole[128:168])
    nonce = (208).to_bytes(12, "little")
    assert AESGCM(pack_key).decrypt(nonce, whole[264:281], whole[208:264]) == b"x"


def test_every_magic_is_on_the_page() -> None:
    magics = [kind.value for kind in Frame] + [pack.MAGIC, pack.FOOTER_MAGIC, index.MAGIC]
    assert [magic for magic in magics if f"`{magic.decode()}`" not in PAGE] == []


def test_the_limits_on_the_page_are_the_program_s() -> None:
    def row(number: str) -> tuple[str, str]:
        found = re.search(rf"^\| {number} \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
        assert found is not None, number
        return found[1], found[2]

    def has(number: str, accepted: str, written: str = "") -> bool:
        return accepted in row(number)[0] and written in row(number)[1]

    kib, mib = units.KIB, units.MIB
    smallest, largest = chunk.SIZE_MIN // kib, chunk.SIZE_MAX // mib
    default = f"{chunk.SIZE_DEFAULT // kib} KiB"
    assert has("chunk size", f"{smallest} KiB to {largest} MiB", default)
    assert f"(default {default})" in PAGE
    packs = f"{pack.SIZE_MAX // mib} MiB, {pack.ENTRIES_MAX:,} blobs"
    target, meta = pack.TARGET_BYTES // mib, pack.META_TARGET_BYTES // mib
    assert has("pack", packs, f"at {target} MiB, in `meta/` at {meta} MiB")
    assert set(pack.PLAIN_LENGTH_MAX.values()) == {chunk.SIZE_MAX, 16 * kib}
    assert has("plain length of a blob", f"{largest} MiB, of a node 16 KiB")
    assert has("level of a node", str(diskmap.LEVEL_MAX))
    assert (index.ENTRIES_LIMIT, index.PACKS_LIMIT, index.ENTRIES_MAX) == (
        1 << 23,
        1 << 22,
        1 << 20,
    )
    assert (index.FILTER_LOG2_MIN, index.FILTER_LOG2_MAX) == (6, 27)
    assert has("frame", f"{format.FRAME_BODY_MAX // mib} MiB", f"{records.PACKS_MAX:,} packs")
    assert has("session id", str(format.SESSION_LENGTH_MAX))
    assert has("size of `sendense.json`", f"{descriptor.SIZE_MAX // kib} KiB")


def test_packs_twice_as_large_are_within_every_limit() -> None:
    blob = pack.BLOB.size + chunk.SIZE_MAX + TAG_LENGTH
    directory = pack.ENTRIES_MAX * pack.ENTRY.size
    largest = 64 * units.MIB + blob + directory + pack.FOOTER.size
    assert largest <= pack.SIZE_MAX == standalone_reader.PACK_MAX
    assert pack.SIZE_MAX < 1 << 32  # offsets in segments


def test_the_fields_of_checkpoints_are_on_the_page() -> None:
    from dataclasses import fields

    from sendense.repository.session import CheckpointHead

    text = re.search(r"### Checkpoint\n(.*?)\n## ", PAGE, re.DOTALL)
    assert text is not None
    named = set(re.findall(r"`([a-z_]+)`", text[1]))
    assert {field.name for field in fields(CheckpointHead)} <= named


def test_every_record_is_on_the_page_with_all_its_fields() -> None:
    from dataclasses import fields

    from sendense.repository import backups, manifest, recipients, session
    from sendense.repository.gc import records as gc

    records = {
        "Manifest": manifest.Manifest,
        "Vm": manifest.VmRecord,
        "Disk": manifest.DiskRecord,
        "Skipped": manifest.SkippedDisk,
        "Outcome": session.Outcome,
        "Tombstone": backups.Tombstone,
        "Registration": session.Registration,
        "Attempt": session.Attempt,
        "Owner": session.Owner,
        "Done": session.Done,
        "Recipient": recipients.Recipient,
        "Plan": gc.Plan,
        "Struck": gc.Struck,
        "Condemned": gc.Condemned,
        "Final": gc.Final,
        "Collected": gc.Done,
    }
    for title, record in records.items():
        row = re.search(rf"^\| {title} \| (.*) \|$", PAGE, re.MULTILINE)
        assert row is not None, title
        named = set(re.findall(r"`([a-z_]+)`", row[1]))
        assert {field.name for field in fields(record)} <= named, title
