"""The worked examples of docs/format.md are bytes that the program reads and writes."""

import re
from pathlib import Path

import blake3
import pytest

from sendense.repository import diskmap, format, index, pack
from sendense.repository.chunk import ZERO_ID
from sendense.repository.format import Frame
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
    pack.verify(data, ref, on_blob=found.append)
    (entry,) = found
    assert (entry.offset, entry.stored_length, entry.plain_length) == (0xD0, 5, 5)
    blob = data[entry.offset : entry.offset + pack.BLOB.size + 5]
    assert pack.open_blob(blob, entry.id, name="example") == b"hello"
    assert f"`{entry.id.hex()}`" in PAGE
    assert pack.parse_header(data, name="example") == (Kind.DATA, "example")


def test_the_example_pack_is_what_the_program_writes() -> None:
    builder = PackBuilder(Kind.DATA, session_id="example", salt=bytes(range(32)))
    chunk_id = blake3.blake3(b"hello").digest()
    builder.add(pack.BlobType.CHUNK, 0, chunk_id, b"hello", plain_length=5)
    assert b"".join(builder.seal().buffers) == _example("pack")


def test_the_example_node_is_read_and_written_as_the_page_says() -> None:
    data = _example("node")
    slots = diskmap.decode_node(data, level=0)
    assert [slot for slot, slot_id in enumerate(slots) if slot_id != ZERO_ID] == [9]
    assert slots[9] == blake3.blake3(b"hello").digest()
    assert diskmap.encode_node(0, slots) == data
    assert f"The node's id is `{pack.identify_node(data).hex()}`" in PAGE


def test_the_example_frame_is_read_and_written_as_the_page_says() -> None:
    data = _example("frame")
    assert format.open_frame(Frame.TOMBSTONE, data, name="example") == b'{"example":1}'
    assert format.seal_frame(Frame.TOMBSTONE, b'{"example":1}') == data


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


def test_every_magic_is_on_the_page() -> None:
    magics = [kind.value for kind in Frame] + [pack.MAGIC, pack.FOOTER_MAGIC, index.MAGIC]
    assert [magic for magic in magics if f"`{magic.decode()}`" not in PAGE] == []


def test_every_record_is_on_the_page_with_all_its_fields() -> None:
    from dataclasses import fields

    from sendense.repository import backups, manifest, session

    records = {
        "Manifest": manifest.Manifest,
        "Vm": manifest.VmRecord,
        "Disk": manifest.DiskRecord,
        "Skipped": manifest.SkippedDisk,
        "Outcome": session.Outcome,
        "Tombstone": backups.Tombstone,
        "Registration": session.Registration,
        "Owner": session.Owner,
        "Done": session.Done,
    }
    for title, record in records.items():
        row = re.search(rf"^\| {title} \| (.*) \|$", PAGE, re.MULTILINE)
        assert row is not None, title
        named = set(re.findall(r"`([a-z_]+)`", row[1]))
        assert {field.name for field in fields(record)} <= named, title
