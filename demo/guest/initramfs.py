"""An initramfs without cpio, kmod or root.

The archive is in the "newc" format of the kernel's Documentation/driver-api/early-userspace/
buffer-format.rst; module dependencies come from the `depends=` entries of the modules' .modinfo
sections (Documentation/kbuild/modules.rst), library dependencies from ELF's DT_NEEDED.
"""

import lzma
import re
import stat
import struct
from pathlib import Path, PurePosixPath

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SOFT_DEPENDS = re.compile(rb"\0softdep=pre: ([^\0]*)\0")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC_ENTRY = struct.Struct("<QQ")


class Archive:
    """A newc archive under construction; folders come into being as files need them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[str] = set()
        self._inode = 0

    def add_file(self, path: str, data: bytes, *, mode: int = 0o755) -> None:
        """Add a regular file; `path` has no leading slash."""
        self._add_folders(path)
        self._add(path, stat.S_IFREG | mode, data)

    def add_character_device(self, path: str, *, major: int, minor: int) -> None:
        """Add a device node, which only the kernel that unpacks the archive creates."""
        self._add_folders(path)
        self._add(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """Return the whole archive."""
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _add_folders(self, path: str) -> None:
        for folder in reversed(PurePosixPath(path).parents):
            name = str(folder)
            if name not in {".", *self._folders}:
                self._folders.add(name)
                self._add(name, stat.S_IFDIR | 0o755)

    def _add(
        self, path: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        for part in (header, data):
            self._parts += (part, bytes(-len(part) % 4))


def read_module(path: Path) -> bytes:
    """Return a kernel module's bytes, decompressed: busybox's insmod knows plain ones only."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def order_modules(tree: Path, wanted: list[str]) -> list[tuple[str, bytes]]:
    """Return the wanted modules and all they depend on, in an order in which they can be loaded.

    A name that is no module under `tree` is taken to be built into the kernel.
    """
    files = {
        path.name.split(".ko")[0].replace("-", "_"): path
        for path in tree.rglob("*.ko*")
        if path.suffix in {".ko", ".xz"}
    }
    ordered: dict[str, bytes] = {}
    visited: set[str] = set()

    def visit(name: str) -> None:
        if name in visited or name not in files:
            return
        visited.add(name)
        data = read_module(files[name])
        hard = _DEPENDS.search(data)
        names = hard.group(1).decode().split(",") if hard else []
        for soft in _SOFT_DEPENDS.findall(data):
            names += soft.decode().split()
        for dependency in names:
            visit(dependency.replace("-", "_"))
        ordered[name] = data

    for name in wanted:
        visit(name.replace("-", "_"))
    return list(ordered.items())


def list_needed(data: bytes) -> list[str]:
    """Return the names of the shared libraries that a 64-bit little-endian ELF file asks for."""
    table_offset = struct.unpack_from("<Q", data, 32)[0]
    entry_size, entry_count = struct.unpack_from("<HH", data, 54)
    headers = [
        _PROGRAM_HEADER.unpack_from(data, table_offset + index * entry_size)
        for index in range(entry_count)
    ]
    dynamic = next(header for header in headers if header[0] == _PT_DYNAMIC)
    entries = []
    for offset in range(dynamic[2], dynamic[2] + dynamic[5], _DYNAMIC_ENTRY.size):
        tag, value = _DYNAMIC_ENTRY.unpack_from(data, offset)
        if tag == 0:
            break
        entries.append((tag, value))
    strings_address = next(value for tag, value in entries if tag == _DT_STRTAB)
    segment = next(
        header
        for header in headers
        if header[0] == _PT_LOAD and header[3] <= strings_address < header[3] + header[5]
    )
    strings = strings_address - segment[3] + segment[2]
    names = []
    for tag, value in entries:
        if tag == _DT_NEEDED:
            start = strings + value
            names.append(data[start : data.index(b"\0", start)].decode())
    return names


def find_libraries(tree: Path, program: Path) -> dict[str, bytes]:
    """Return by soname every library that a program needs, found under `tree`.

    Raises KeyError naming the library that is in none of the unpacked packages.
    """
    files = {path.name: path for path in tree.rglob("*.so*") if path.is_file()}
    found: dict[str, bytes] = {}
    waiting = list_needed(program.read_bytes())
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = files[name].read_bytes()
            waiting += list_needed(found[name])
    return found
