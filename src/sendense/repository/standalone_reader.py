"""Restores disks from a Sendense backup repository in a directory, with nothing else of Sendense.

This one file lies in every repository as restore.py. It needs Python 3.11 or later with
`pip install blake3 zstandard cryptography`, the repository, and, where that is encrypted, its
recovery key or a passphrase:

    python3 restore.py list
    python3 restore.py restore --backup ID --to disk.raw
    python3 restore.py restore --backup ID --disk 2001 --to disk.raw --salvage

It reads the packs themselves, not the index, and writes nothing into the repository. Every chunk is
compared with its id: what cannot be read whole is an error, or with --salvage a hole that is told.
It does not tell a collector of garbage that it reads: stop `sendense` meanwhile.
"""

import argparse
import base64
import getpass
import json
import os
import struct
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import blake3
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

Json = dict[str, Any]

VERSION = 1
FEATURES = {"draft", "encryption"}  # made as a draft, the bytes mean the same
CONTEXT = "sendense repository v1 "
ZERO_ID = bytes(32)
FRAME = struct.Struct("<8sHHI16s24sQ")
PACK = struct.Struct("<8sHHI16s32s64s40s24s8s8s")
BLOB = struct.Struct("<4sBBHII32s8s")
ENTRY = struct.Struct("<32sQIIBBHI")
FOOTER = struct.Struct("<8sQIIQ32s")
NODE = struct.Struct("<4sBBH32s")
HASH_LENGTH = 32
RECOVERY_LENGTH = 35
ARGON_MAX = 1 << 28  # what a wrap may ask of us: some minutes, and 1 GiB with 16 lanes
FRAME_MAX = 65 * 1024 * 1024
PACK_MAX = 128 * 1024 * 1024
ENTRIES_MAX = 1 << 16
CHUNK_MAX = 4 * 1024 * 1024
FAN_OUT = 256
PROGRESS_PACKS = 64  # packs between two words on how far it is: 2 GiB


class Damaged(Exception):
    """Something is not what it should be."""


class Unusable(Exception):
    """What was asked for cannot be done: no key, no such backup, a target that exists."""


def derive(root: bytes, use: str) -> bytes:
    """Return a key that comes from the root key."""
    return blake3.blake3(root, derive_key_context=CONTEXT + use).digest()


class Keys:
    """What a repository is sealed with; `root` is None where it is not encrypted."""

    def __init__(self, root: bytes | None) -> None:
        self.domain = derive(root, "domain")[:16] if root else bytes(16)
        self.epoch = 1 if root else 0
        self._chunks = derive(root, "chunk ids") if root else None
        self._nodes = derive(root, "node ids") if root else None
        self._frames = derive(root, "frames") if root else None
        self._wrapping = derive(root, "pack keys") if root else None

    def identify_chunk(self, data: bytes) -> bytes:
        """Return a chunk's id."""
        if self._chunks is None:
            return hash_of(data)
        return blake3.blake3(data, key=self._chunks).digest()

    def identify_node(self, data: bytes) -> bytes:
        """Return the id of a node of a disk map."""
        if self._nodes is None:
            return blake3.blake3(data, derive_key_context=CONTEXT + "disk map node").digest()
        return blake3.blake3(data, key=self._nodes).digest()

    def open_frame(self, magic: bytes, path: Path) -> Json:
        """Return the record in a small object, which must fit its checksum and its seal."""
        data = read(path, FRAME_MAX)
        if len(data) < FRAME.size + HASH_LENGTH:
            raise Damaged(f"{path} is cut off")
        found, version, flags, epoch, domain, slot, length = FRAME.unpack_from(data)
        whole = len(data) == FRAME.size + length + HASH_LENGTH
        if found != magic or not whole or hash_of(data[:-HASH_LENGTH]) != data[-HASH_LENGTH:]:
            raise Damaged(f"{path} is damaged")
        if (version, flags, epoch, domain) != (VERSION, 0, self.epoch, self.domain):
            raise Damaged(f"{path} is of another version or key")
        head, body = data[: FRAME.size], data[FRAME.size : -HASH_LENGTH]
        if self._frames is not None:
            key = blake3.blake3(slot, key=self._frames).digest()
            try:
                body = AESGCM(key).decrypt(bytes(12), body, head)
            except InvalidTag:
                raise Damaged(f"the seal of {path} is broken") from None
        record: Json = json.loads(body)
        return record

    def open_pack(self, wrapped: bytes, path: Path) -> AESGCM | None:
        """Return what opens a pack's blobs, None where nothing is sealed."""
        if self._wrapping is None:
            return None
        try:
            return AESGCM(keywrap.aes_key_unwrap(self._wrapping, wrapped))
        except keywrap.InvalidUnwrap:
            raise Damaged(f"the key of {path} does not open") from None


def hash_of(data: bytes) -> bytes:
    """Return the plain hash."""
    return blake3.blake3(data).digest()


def read(path: Path, size_max: int) -> bytes:
    """Return a file's bytes, but none that is absurdly large."""
    if path.stat().st_size > size_max:
        raise Damaged(f"{path} is too large")
    return path.read_bytes()


# Keys.


def parse_recovery_key(text: str) -> bytes:
    """Return the root key that a recovery key is."""
    plain = "".join(text.split()).replace("-", "").upper().removeprefix("SENDENSE1")
    try:
        raw = base64.b32decode(plain.translate(str.maketrans("018", "OIB")))
    except ValueError:
        raw = b""
    check = blake3.blake3(raw[:32], derive_key_context=CONTEXT + "recovery key").digest()[:3]
    if len(raw) != RECOVERY_LENGTH or raw[32:] != check:
        raise Unusable("this is no recovery key, or there is a slip in it")
    return raw[:32]


def open_by_passphrase(folder: Path, domain: bytes, passphrase: str) -> bytes:
    """Return the root key that a passphrase opens."""
    secret = unicodedata.normalize("NFC", passphrase).encode()
    for path in list_files(folder / "keys"):
        try:
            one = Keys(None).open_frame(b"SENDKEYW", path)
            if one["iterations"] * one["lanes"] * one["memory_kib"] > ARGON_MAX:
                continue
            key = Argon2id(
                salt=bytes.fromhex(one["salt"]),
                length=32,
                iterations=one["iterations"],
                lanes=one["lanes"],
                memory_cost=one["memory_kib"],
            ).derive(secret)
            root = keywrap.aes_key_unwrap(key, bytes.fromhex(one["wrapped"]))
        except (Damaged, keywrap.InvalidUnwrap, KeyError, TypeError, ValueError):
            continue
        if derive(root, "domain")[:16] == domain:
            return root
    raise Unusable("the passphrase does not open the repository")


def unlock(folder: Path, given: argparse.Namespace) -> Keys:
    """Return the keys of the repository in a folder."""
    try:
        found = json.loads(read(folder / "sendense.json", 64 * 1024))
    except (OSError, ValueError) as error:
        raise Unusable(f"there is no repository at {folder}: {error}") from None
    if found.get("format") != "sendense-repository" or found.get("version") != VERSION:
        raise Unusable(f"{folder} is no repository of version {VERSION}")
    added = [path.name.removeprefix("read.") for path in list_files(folder / "features")]
    added = [name for name in added if not name.startswith(("write.", "gc."))]
    strange = {*found["features"]["read"], *added} - FEATURES
    if strange:
        raise Unusable(f"the repository has features that are not known here: {strange}")
    key, phrase = find_secrets(given)
    if found["domain"] is None:
        if key or phrase:
            raise Unusable("a key is given, but the repository says that it is not encrypted")
        return Keys(None)
    if not key and not phrase:
        typed = getpass.getpass("Recovery key or passphrase: ").strip()
        key, phrase = (typed, "") if typed.upper().startswith("SENDENSE-1") else ("", typed)
    domain = bytes.fromhex(found["domain"])
    root = parse_recovery_key(key) if key else open_by_passphrase(folder, domain, phrase)
    if derive(root, "domain")[:16] != domain:
        raise Unusable("the key is that of another repository")
    mac, found["mac"] = found["mac"], None
    text = json.dumps(found, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    if blake3.blake3(text, key=derive(root, "descriptor")).hexdigest() != mac:
        raise Damaged("somebody has changed sendense.json")
    return Keys(root)


def find_secrets(given: argparse.Namespace) -> tuple[str, str]:
    """Return the recovery key and the passphrase that options or the environment give, or ""."""
    if given.recovery_key_file:
        return Path(given.recovery_key_file).read_text().strip(), ""
    if given.passphrase_file:
        return "", Path(given.passphrase_file).read_text().rstrip("\r\n")
    key = os.environ.get("SENDENSE_RECOVERY_KEY", "")
    return key, "" if key else os.environ.get("SENDENSE_PASSPHRASE", "")


# Backups.


def list_files(folder: Path) -> list[Path]:
    """Return the objects below a folder; what is being written does not count."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not path.name.startswith(".tmp-"))


def open_or_warn(keys: Keys, magic: bytes, path: Path) -> Json:
    """Return a record; nothing, and a warning, where it is damaged."""
    try:
        return keys.open_frame(magic, path)
    except Damaged as error:
        warn(str(error))
        return {}


def list_backups(folder: Path, keys: Keys) -> list[Json]:
    """Return the manifests of all backups that are not deleted, oldest first."""
    tombs = [open_or_warn(keys, b"SENDTOMB", path) for path in list_files(folder / "tombs")]
    dead: set[str] = {one["manifest_id"] for one in tombs if one}
    if not all(tombs):
        warn("a deleted backup may be listed")
    newest = {path.parent.name: path for path in list_files(folder / "holds")}
    for one in dead & newest.keys():  # held while somebody was about to delete it
        if open_or_warn(keys, b"SENDHOLD", newest[one]).get("held", True):
            dead.remove(one)
    found, lost = [], set()
    for path in list_files(folder / "backups"):
        made = open_or_warn(keys, b"SENDMANI", path)
        found += [made] if made else []
        lost |= set() if made else {path.name}
    for path in list_files(folder / "outcomes") if lost else ():  # they hold a copy
        copy = open_or_warn(keys, b"SENDOUTC", path).get("manifest")
        if copy and copy["object_id"] in lost:
            found.append(copy)
    live = [one for one in found if one["object_id"] not in dead]
    return sorted(live, key=lambda one: (one["completed_at"], one["backup_id"]))


def find_disk(backups: Sequence[Json], backup_id: str, key: int | None) -> Json:
    """Return one disk of one backup."""
    for backup in backups:
        if backup["backup_id"] != backup_id:
            continue
        disks = [disk for disk in backup["disks"] if key in {None, disk["key"], disk["index"]}]
        if len(disks) == 1:
            disk: Json = disks[0]
            return disk
        held = ", ".join(str(disk["key"]) for disk in backup["disks"])
        raise Unusable(f"say by --disk which of its disks: {held}")
    raise Unusable(f"there is no backup {backup_id}; `list` shows those that there are")


# Packs.


def list_blobs(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Yield id, place and stored length of a pack's blobs, from its directory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not PACK.size + FOOTER.size <= size <= PACK_MAX:
            raise Damaged(f"{path} has an impossible size")
        file.seek(size - FOOTER.size)
        magic, start, count, _, total, digest = FOOTER.unpack(file.read(FOOTER.size))
        length = count * ENTRY.size
        fits = start + length + FOOTER.size == size == total
        if magic != b"SENDFOOT" or count > ENTRIES_MAX or not fits:
            raise Damaged(f"the end of {path} is damaged")
        file.seek(start)
        directory = file.read(length)
    if hash_of(directory) != digest:
        raise Damaged(f"the directory of {path} is damaged")
    for blob_id, offset, stored, *_ in ENTRY.iter_unpack(directory):
        yield blob_id, offset, stored


def open_pack(path: Path, keys: Keys) -> AESGCM | None:
    """Return what opens a pack's blobs, after looking at its header."""
    with path.open("rb") as file:
        head = file.read(PACK.size)
    if len(head) < PACK.size or blake3.blake3(head[:-8]).digest(length=8) != head[-8:]:
        raise Damaged(f"the header of {path} is damaged")
    magic, version, _, epoch, domain, _, _, wrapped, *_ = PACK.unpack(head)
    if (magic, version, epoch, domain) != (b"SENDPACK", VERSION, keys.epoch, keys.domain):
        raise Damaged(f"{path} is of another version or key")
    return keys.open_pack(wrapped, path)


def read_blob(file: Any, offset: int, stored: int, cipher: AESGCM | None) -> tuple[bytes, bytes]:
    """Return a blob's id and its plain bytes, which the caller compares with it."""
    file.seek(offset)
    data = file.read(BLOB.size + stored)
    if len(data) != BLOB.size + stored:
        raise Damaged("a blob is cut off")
    head, body = data[: BLOB.size], data[BLOB.size :]
    magic, _, codec, _, length, plain_length, blob_id, _ = BLOB.unpack(head)
    if magic != b"BLOB" or length != stored or plain_length > CHUNK_MAX:
        raise Damaged("no blob lies where the directory says")
    try:
        if cipher is not None:
            body = cipher.decrypt(offset.to_bytes(12, "little"), body, head)
        if codec == 1:
            if zstandard.frame_content_size(body) != plain_length:
                raise Damaged("a blob has another length than it says")
            body = zstandard.ZstdDecompressor().decompress(body)
    except (InvalidTag, zstandard.ZstdError) as error:
        raise Damaged(f"a blob does not open: {error!r}") from None
    return blob_id, body


# Restoring.


def load_nodes(folder: Path, keys: Keys) -> dict[bytes, bytes]:
    """Return all nodes of disk maps; those that are damaged are missing."""
    nodes = {}
    for path in list_files(folder / "meta"):
        try:
            cipher = open_pack(path, keys)
            with path.open("rb") as file:
                for node_id, offset, stored in list_blobs(path):
                    _, data = read_blob(file, offset, stored, cipher)
                    if keys.identify_node(data) == node_id:
                        nodes[node_id] = data
        except Damaged as error:
            warn(str(error))
    return nodes


def walk(nodes: dict[bytes, bytes], disk: Json) -> tuple[dict[bytes, list[int]], list[range]]:
    """Return where each chunk of a disk goes, and the runs of chunks of which nobody knows."""
    count = -(-disk["size_bytes"] // disk["chunk_size"])
    level = 0
    while FAN_OUT ** (level + 1) < count:
        level += 1
    wanted: dict[bytes, list[int]] = {}
    lost = []
    todo = [(bytes.fromhex(disk["root"]), level, 0)]
    while todo:
        node_id, level, index = todo.pop()
        if node_id == ZERO_ID:
            continue
        if level < 0:
            if index < count:
                wanted.setdefault(node_id, []).append(index)
            continue
        span = FAN_OUT ** (level + 1)
        try:
            slots = parse_node(nodes[node_id], level)
        except (KeyError, Damaged):
            lost.append(range(index * span, min((index + 1) * span, count)))
            continue
        todo += [(one, level - 1, index * FAN_OUT + slot) for slot, one in slots]
    return wanted, lost


def parse_node(data: bytes, level: int) -> list[tuple[int, bytes]]:
    """Return the slots in use of a node, and their ids."""
    magic, version, found, count, bits = NODE.unpack_from(data)
    used = [slot for slot in range(FAN_OUT) if bits[slot // 8] >> slot % 8 & 1]
    if (magic, version, found, count) != (b"NODE", 1, level, len(used)):
        raise Damaged("a node of the disk map is damaged")
    ids = [data[at : at + 32] for at in range(NODE.size, len(data), 32)]
    return list(zip(used, ids, strict=True))


def restore(folder: Path, keys: Keys, disk: Json, target: Path, *, salvage: bool) -> list[Any]:
    """Write a disk to a new file, pack by pack; return the ranges that are missing."""
    wanted, lost = walk(load_nodes(folder, keys), disk)
    size, chunk_size = disk["size_bytes"], disk["chunk_size"]
    hidden = target.with_name(f".{target.name}.partial")
    with hidden.open("xb") as output:
        os.truncate(output.fileno(), size)
        packs = list_files(folder / "packs") if wanted else []
        for number, path in enumerate(packs):
            if number % PROGRESS_PACKS == 0:
                warn(f"{number} of {len(packs)} packs read, {len(wanted)} chunks to go")
            try:
                copy_chunks(path, keys, wanted, output, chunk_size)
            except Damaged as error:
                warn(f"{path}: {error}")
        output.flush()
        os.fsync(output.fileno())
    lost += [range(index, index + 1) for indexes in wanted.values() for index in indexes]
    missing = [
        (run.start * chunk_size, min(run.stop * chunk_size, size))
        for run in sorted(lost, key=lambda run: run.start)
    ]
    if missing and not salvage:
        hidden.unlink()
        start, end = missing[0]
        raise Damaged(
            f"{len(missing)} ranges cannot be read, the first is {start}-{end}; with --salvage, "
            "all others are written"
        )
    os.link(hidden, target)  # never over a file that exists
    hidden.unlink()
    return missing


def copy_chunks(
    path: Path, keys: Keys, wanted: dict[bytes, list[int]], output: Any, chunk_size: int
) -> None:
    """Write those chunks of a pack that are wanted; what is damaged stays wanted."""
    entries = [one for one in list_blobs(path) if one[0] in wanted]
    if not entries:
        return
    cipher = open_pack(path, keys)
    with path.open("rb") as file:
        for chunk_id, offset, stored in entries:
            try:
                _, data = read_blob(file, offset, stored, cipher)
            except Damaged as error:
                warn(f"{path}: {error}")
                continue
            if keys.identify_chunk(data) != chunk_id:
                warn(f"{path}: chunk {chunk_id.hex()} is damaged")
                continue
            for index in wanted.pop(chunk_id, ()):
                output.seek(index * chunk_size)
                output.write(data)


# The command line.


def warn(message: str) -> None:
    """Tell a person something, beside what the command prints."""
    print(message, file=sys.stderr)  # noqa: T201 - all that this file needs


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--repository", type=Path, default=Path(__file__).resolve().parent)
    shared.add_argument("--recovery-key-file", help="or set SENDENSE_RECOVERY_KEY")
    shared.add_argument("--passphrase-file", help="or set SENDENSE_PASSPHRASE")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[shared], help="list the backups and their disks")
    one = commands.add_parser("restore", parents=[shared], help="write a disk to a raw file")
    one.add_argument("--backup", required=True, help="id of the backup")
    one.add_argument("--disk", type=int, help="key or index, where there are several")
    one.add_argument("--to", required=True, type=Path, help="the file to make")
    one.add_argument("--salvage", action="store_true", help="leave out what cannot be read")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0, 1 where something is damaged or missing, 2 where it cannot be done."""
    given = parse_arguments(arguments)
    folder: Path = given.repository
    try:
        keys = unlock(folder, given)
        backups = list_backups(folder, keys)
        if given.command == "list":
            for one in backups:
                for disk in one["disks"]:
                    print(  # noqa: T201 - what was asked for
                        one["completed_at"], one["backup_id"], one["vm"]["name"], disk["key"],
                        disk["size_bytes"], sep="\t",
                    )  # fmt: skip
            return 0
        disk = find_disk(backups, given.backup, given.disk)
        missing = restore(folder, keys, disk, given.to, salvage=given.salvage)
    except (Damaged, KeyError, TypeError, ValueError, struct.error) as error:
        warn(f"error: {error}")
        return 1
    except (Unusable, OSError) as error:
        warn(f"error: {error}")
        return 2
    for start, end in missing:
        print(f"missing\t{start}\t{end}")  # noqa: T201 - what was asked for
    return 1 if missing else 0


if __name__ == "__main__":  # pragma: no cover - a test runs it in another process
    sys.exit(main())
