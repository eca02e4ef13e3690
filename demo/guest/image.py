"""Kernel and initramfs of the tiny guest, made once and kept.

The cache's folder is named after this recipe, so that another recipe never finds an old image; it
appears whole or not at all.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from demo.guest import initramfs, packages
from sendense.core.errors import Unavailable

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "guest"
KERNEL = "linux-image-cloud-amd64"  # small, and has everything virtio
MODULES = [
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_console",
    "crc32c_generic",  # ext4 asks for the algorithm by name, which .modinfo does not resolve
    "ext4",
]
LOADER = "ld-linux-x86-64.so.2"
_HERE = Path(__file__).resolve().parent
_RECIPE = ["image.py", "initramfs.py", "packages.py", "init"]


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What QEMU boots directly."""

    kernel: Path
    initrd: Path


def build(cache: Path = CACHE) -> GuestImage:
    """Return the guest's kernel and initramfs, making them where the cache has none.

    Raises Unavailable where apt cannot deliver the packages.
    """
    digest = hashlib.sha256(b"\0".join((_HERE / name).read_bytes() for name in _RECIPE))
    folder = cache / digest.hexdigest()[:16]
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as name:
            made = _make(Path(name))
            # Another process may have been faster; its image is as good as ours.
            with contextlib.suppress(OSError):
                made.rename(folder)
    return GuestImage(folder / "vmlinuz", folder / "initrd.cpio")


def _make(work: Path) -> Path:
    downloads, tree, result = (work / name for name in ("deb", "tree", "result"))
    for folder in (downloads, tree, result):
        folder.mkdir()
    packages.ensure_lists(KERNEL)
    kernel = next(
        (name for name in packages.list_dependencies(KERNEL) if name.startswith("linux-image-")),
        None,
    )
    if kernel is None:
        raise Unavailable(f"package {KERNEL} names no kernel", hint="run: apt-get update")
    names = [kernel, "busybox-static", "qemu-guest-agent"]
    names += packages.list_libraries("qemu-guest-agent")
    files = packages.download(names, downloads)
    packages.unpack(files, tree)
    shutil.copyfile(next(tree.glob("boot/vmlinuz-*")), result / "vmlinuz")
    (result / "initrd.cpio").write_bytes(_make_initramfs(tree))
    (result / "packages.json").write_text(json.dumps([file.name for file in files], indent=1))
    return result


def _make_initramfs(tree: Path) -> bytes:
    archive = initramfs.Archive()
    archive.add_character_device("dev/console", major=5, minor=1)
    archive.add_file("init", (_HERE / "init").read_bytes())
    archive.add_file("bin/busybox", next(tree.glob("**/bin/busybox")).read_bytes())
    agent = next(tree.glob("**/sbin/qemu-ga"))
    archive.add_file("usr/sbin/qemu-ga", agent.read_bytes())
    for name, data in sorted(initramfs.find_libraries(tree, agent).items()):
        archive.add_file(f"lib/x86_64-linux-gnu/{name}", data)
        if name == LOADER:
            archive.add_file(f"lib64/{name}", data)
    modules = initramfs.order_modules(tree / "lib" / "modules", MODULES)
    if not modules:
        modules = initramfs.order_modules(tree / "usr" / "lib" / "modules", MODULES)
    for name, data in modules:
        archive.add_file(f"lib/modules/{name}.ko", data, mode=0o644)
    order = "".join(f"{name}\n" for name, _ in modules)
    archive.add_file("etc/modules.order", order.encode(), mode=0o644)
    return archive.finish()
