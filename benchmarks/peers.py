"""Programs that people compare us with, each with its fastest sensible settings.

restic and borg read the image file itself, which costs them no NBD; each keeps an encrypted
repository on the same disk as ours, with zstd.
"""

import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks import contenders
from benchmarks.contenders import Contender, Figures

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
            # Neither syncs what it restored; ours and qemu-img do.
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
            return figures.counting(bytes_stored=self.stored_bytes())

        shown = self.backup_command(image, 1)
        return Contender(self.name, " ".join(shown), run, prepare)

    def _run(self, command: list[str], *, within: Path | None = None) -> Figures:
        environment = {**os.environ, "HOME": str(self._home), **self.environment}
        return contenders.run_program(command, environment=environment, within=within)


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
        """Make the repository, with the faster of its hashes."""
        return ["borg", "init", "--encryption", "repokey-blake2"]

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


def list_installed(folder: Path) -> list[Peer]:
    """Return the programs that are here."""
    return [kind(folder) for kind in (Restic, Borg) if shutil.which(kind.name)]
