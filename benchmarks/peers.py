"""Programs that people compare us with, each with its fastest sensible settings.

They read the image file itself, which costs them no NBD; each keeps an encrypted repository on the
same disk as ours, with zstd. restic and borg are Debian's; Benji is PyPI's, in an environment of
its own. virtnbdbackup is left out: it backs up libvirt's guests, which no connector of ours does
yet.
"""

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks import contenders
from benchmarks.contenders import Contender, Figures
from sendense.core import units

ROOT = Path(__file__).resolve().parent.parent
BENJI_SETTINGS = Path(__file__).with_name("benji.yaml")
BENJI_LOCK = ROOT / "requirements" / "benji.txt"
BENJI_HOME = ROOT / ".cache" / "bench" / "benji-venv"
SECRET = "benchmark"  # noqa: S105 - of throw-away repositories


class Peer(ABC):
    """A backup program with one repository; its contenders share what the first run left."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.repository = folder / f"{self.name}-repository"
        self._home = folder / f"{self.name}-home"
        self._out = folder / f"{self.name}-restored"
        self._backups = 0

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What the program finds in its environment besides ours."""

    @abstractmethod
    def init_command(self) -> list[str]:
        """Make the repository."""

    @abstractmethod
    def backup_command(self, image: Path, number: int) -> list[str]:
        """Back up an image for the n-th time, reading all of it."""

    @abstractmethod
    def restore_command(self, number: int, out: Path) -> list[str]:
        """Restore the n-th backup into a folder, which is the working directory too."""

    @abstractmethod
    def verify_command(self) -> list[str]:
        """Read, decrypt and hash all that is stored."""

    def full(self, image: Path) -> Contender:
        """The first backup, into an empty repository."""

        def prepare() -> None:
            contenders.remove(self.repository, self._home)
            self._home.mkdir()
            self._run(self.init_command())
            self._backups = 0

        return self._contender(image, prepare)

    def again(self, image: Path) -> Contender:
        """Another backup of the same place."""
        return self._contender(image, os.sync)

    def restore(self) -> Contender:
        """The newest backup as a sparse file, durable."""
        shown = self.restore_command(self._backups, self._out)

        def prepare() -> None:
            contenders.remove(self._out)
            self._out.mkdir()

        def run() -> Figures:
            command = self.restore_command(self._backups, self._out)
            # None syncs what it restored; ours and qemu-img do.
            return self._run(["sh", "-c", '"$@" && sync -f .', "sh", *command], within=self._out)

        return Contender(self.name, " ".join(shown), run, prepare)

    def verify(self) -> Contender:
        """All that is stored."""
        command = self.verify_command()
        return Contender(self.name, " ".join(command), lambda: self._run(command))

    def restored(self) -> Path:
        """Return the file that a restore left."""
        return max(
            (path for path in self._out.rglob("*.raw")), key=lambda path: path.stat().st_size
        )

    def stored_bytes(self) -> int:
        """Return what the repository takes on the disk."""
        return contenders.count_stored(self.repository)

    def _contender(self, image: Path, prepare: "contenders.Prepare") -> Contender:
        def run() -> Figures:
            self._backups += 1
            figures = self._run(self.backup_command(image, self._backups))
            _warm(image)
            return figures.counting(bytes_stored=self.stored_bytes())

        shown = self.backup_command(image, 1)
        return Contender(self.name, " ".join(shown), run, prepare)

    def _run(self, command: list[str], *, within: Path | None = None) -> Figures:
        environment = {**os.environ, "HOME": str(self._home), **self.environment}
        return contenders.run_program(command, environment=environment, within=within or self._home)


class Restic(Peer):
    """restic: content-defined chunks of 1 MiB, zstd at its own default, AES-256."""

    name = "restic"

    @property
    def environment(self) -> dict[str, str]:
        """Its password, and no second copy of what is local anyway."""
        return {"RESTIC_PASSWORD": SECRET, "RESTIC_REPOSITORY": str(self.repository)}

    def init_command(self) -> list[str]:
        """Make the repository, of the version that compresses."""
        return ["restic", "init", "--quiet", "--no-cache", "--repository-version", "2"]

    def backup_command(self, image: Path, number: int) -> list[str]:
        """Read the whole image: `--force`, or it would trust the file's time."""
        del number
        return ["restic", "backup", "--quiet", "--no-cache", "--force", str(image)]

    def restore_command(self, number: int, out: Path) -> list[str]:
        """Restore the latest."""
        del number
        return ["restic", "restore", "latest", "--quiet", "--no-cache", "--target", str(out)]

    def verify_command(self) -> list[str]:
        """Read everything."""
        return ["restic", "check", "--quiet", "--no-cache", "--read-data"]


class Borg(Peer):
    """borg: fixed chunks of 1 MiB, its fastest way through images; zstd level 1."""

    name = "borg"

    @property
    def environment(self) -> dict[str, str]:
        """Its passphrase."""
        return {"BORG_PASSPHRASE": SECRET, "BORG_REPO": str(self.repository)}

    def init_command(self) -> list[str]:
        """Make the repository, with the hash that is the faster one on this processor."""
        has_sha = not {"sha_ni", "sha2"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
        return ["borg", "init", "--encryption", "repokey" if has_sha else "repokey-blake2"]

    def backup_command(self, image: Path, number: int) -> list[str]:
        """Read the whole image, but not its holes: without the cache that trusts its time."""
        command = ["borg", "create", "--compression", "zstd,1", "--files-cache", "disabled"]
        command += ["--chunker-params", "fixed,1048576", "--sparse"]
        return [*command, f"::backup-{number}", str(image)]

    def restore_command(self, number: int, out: Path) -> list[str]:
        """Restore into the working directory."""
        del out
        return ["borg", "extract", "--sparse", f"::backup-{number}"]

    def verify_command(self) -> list[str]:
        """Read everything."""
        return ["borg", "check", "--verify-data"]


class Benji(Peer):
    """Benji: blocks of 4 MiB, zstd level 1, AES-256-GCM; see benji.yaml.

    It hashes what a raw file's holes read as: hints of holes come from Ceph's images alone.
    """

    name = "benji"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing: the file of settings has its key."""
        return {}

    def init_command(self) -> list[str]:
        """Make its database; the repository is made by the first backup."""
        return self._benji("database-init")

    def backup_command(self, image: Path, number: int) -> list[str]:
        """Read the whole image."""
        return self._benji("backup", "--uid", f"backup-{number}", f"file:{image}", "disk")

    def restore_command(self, number: int, out: Path) -> list[str]:
        """Restore to a file that is not there yet."""
        return self._benji("restore", "--sparse", f"backup-{number}", f"file:{out}/disk.raw")

    def verify_command(self) -> list[str]:
        """Read every block of any backup once."""
        return self._benji("batch-deep-scrub")

    def _benji(self, *arguments: str) -> list[str]:
        command = [str(BENJI_HOME / "bin" / "benji"), "--config-file", str(BENJI_SETTINGS)]
        return [*command, "--log-level", "WARNING", *arguments]


def list_installed(folder: Path, *, with_benji: bool) -> list[Peer]:
    """Return the programs that are here; Benji is installed where it is wanted."""
    found: list[Peer] = [kind(folder) for kind in (Restic, Borg) if shutil.which(kind.name)]
    return [*found, Benji(folder)] if with_benji and _install_benji() else found


def _install_benji() -> bool:
    """Install Benji as locked, unless it is; tell why where that fails."""
    stamp = BENJI_HOME / "installed.txt"
    wanted = BENJI_LOCK.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return True
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(BENJI_HOME / "bin" / "python")
    make = [uv, "venv", "--clear", "--relocatable", "--python", sys.executable, str(BENJI_HOME)]
    # Two of its packages have no wheels: the lock says what builds them too.
    install = [uv, "pip", "sync", "--python", python, "--require-hashes", str(BENJI_LOCK)]
    install += ["--build-constraints", str(BENJI_LOCK), "--compile-bytecode"]
    for command in (make, install):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error:" in line), "")
            print(f"Benji is left out, for it could not be installed: {reason}", file=sys.stderr)
            return False
    stamp.write_text(wanted)
    return True


def _warm(image: Path) -> None:
    """Read an image: borg and Benji drop what they have read from the cache of all."""
    with image.open("rb") as file:
        while file.read(units.MIB):
            pass
