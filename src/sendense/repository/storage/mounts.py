"""How a directory is mounted: a share may show a machine for a while what others changed since."""

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
CACHED_SECONDS = 120.0  # twice what NFS keeps a directory for by default (acdirmax, nfs(5))

# What one machine alone writes. Anything else may be a share.
_OF_ONE_MACHINE = frozenset(
    {
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "bcachefs", "f2fs", "jfs", "reiserfs"),
        *("tmpfs", "ramfs", "overlay", "fuseblk", "ntfs3", "vfat", "exfat", "hfsplus"),
        *("squashfs", "iso9660", "ecryptfs"),
    }
)


def listing_seconds(directory: int, *, mounts: Path = MOUNTS) -> float:
    """Return how old a listing of an open directory may be, in seconds; 0 where it is the truth.

    Where nobody knows what it lies on, as on no Linux, it may be a share.
    """
    try:
        path = str(Path(f"/proc/self/fd/{directory}").readlink())
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return CACHED_SECONDS
    best, kind, options = "", "", ""
    for line in lines:  # proc_pid_mountinfo(5): id parent device root point … - type source options
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ") if before.count(" ") > 4 else ""  # noqa: PLR2004
        # Of mounts above each other the last one counts.
        if f"{path}/".startswith(f"{point.rstrip('/')}/") and len(point) >= len(best):
            best = point
            kind, _, options = after.partition(" ")
    if kind in _OF_ONE_MACHINE:
        return 0.0
    told = options.rpartition(" ")[2].split(",")
    kept = [one.removeprefix("acdirmax=") for one in told if one.startswith("acdirmax=")]
    return max([CACHED_SECONDS, *(2.0 * float(one) for one in kept if one.isdigit())])
