"""`sendense support-bundle`: what somebody who helps needs to see, in one file, without secrets."""

import io
import json
import os
import platform
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

import sendense
from sendense.cli import doctor, text
from sendense.cli.command import Session, command
from sendense.cli.failure import Failure
from sendense.cli.redact import HIDDEN, redact
from sendense.core import clock, units
from sendense.core.errors import Denied, Exists, SendenseError

MEMBER_BYTES_MAX = 5 * units.MIB  # attached to a mail, all of it must still fit
JOBS_MAX = 200
JOURNAL_LINES_MAX = 5000
_JOURNAL_SECONDS = 30.0  # a journal of years on a slow disk
_SECRET_LENGTH_MIN = 4  # shorter ones are everywhere; the patterns still find them by name


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    command(
        app,
        "support-bundle",
        examples=[
            "sendense support-bundle",
            "sendense support-bundle --output /tmp/sendense.tar.gz",
        ],
    )(support_bundle)


def support_bundle(
    session: Session,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; by default sendense-support-<time>.tar.gz in this folder.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The server's configuration file.", show_default=False),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="The server's data directory.", show_default=False),
    ] = None,
) -> None:
    """Pack what somebody who helps you needs to see; works without a running server too.

    Versions, settings, health, figures, the last jobs, and the journal where this user may read
    it. Passwords, tokens and the sources' configurations are left out; names of VMs and paths are
    in it, so look into the file before you send it.
    """
    now = datetime.now(UTC)
    path = output or Path(f"sendense-support-{now:%Y%m%dt%H%M%Sz}.tar.gz")
    bundle = _Bundle(_find_secrets(session, config))
    for name, produce in _members(session, config, data_dir):
        bundle.add(name, produce)
    bundle.add_left_out()
    size = _write(path, bundle, now)
    if session.output.as_json:
        document = {"path": str(path), "size_bytes": size, "left_out": bundle.left_out}
        session.output.json(json.dumps(document, ensure_ascii=False))
        return
    session.output.line(f"wrote {path}, {text.size(size)}; look into it before you send it")
    for name, reason in bundle.left_out.items():
        session.output.note(f"left out {name}: {reason}")


def _members(
    session: Session, config: Path | None, data_dir: Path | None
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each member and what makes it: text, or data for JSON."""
    api = session.api
    yield "about.json", _about
    yield "settings.json", lambda: _settings(config)
    yield "doctor.json", lambda: [asdict(one) for one in doctor.look(session, data_dir)]
    yield "data-dir.json", lambda: _data_dir(config, data_dir)
    yield "health.json", lambda: _health(session)
    yield "metrics.txt", api.get_metrics
    yield "workers.json", lambda: api.get("workers").data
    yield "jobs.json", lambda: _jobs(session)
    yield "repositories.json", lambda: api.get("repositories").data
    yield "sources.json", lambda: _sources(session)
    yield "journal.txt", _journal


class _Bundle:
    """The members so far, none with a secret, each of bounded size."""

    def __init__(self, secrets: frozenset[str]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)  # one may hold another
        self.members: dict[str, bytes] = {}
        self.left_out: dict[str, str] = {}

    def add(self, name: str, produce: Callable[[], Any]) -> None:
        """Add what a function makes; where it fails, the reason why it is not there."""
        try:
            made = produce()
        except (Failure, SendenseError) as problem:
            self.left_out[name] = self._clean(problem.message)
            return
        except (OSError, subprocess.SubprocessError) as error:
            self.left_out[name] = self._clean(str(error))
            return
        if not isinstance(made, str):
            made = json.dumps(made, ensure_ascii=False, indent=2, default=str)
        content = self._clean(made).encode(errors="backslashreplace")
        self.members[name] = content[-MEMBER_BYTES_MAX:]  # of a log the end is what counts

    def add_left_out(self) -> None:
        """Say what is not there, and why."""
        self.add("left-out.json", lambda: self.left_out)

    def _clean(self, made: str) -> str:
        for secret in self._secrets:
            made = made.replace(secret, HIDDEN)
            for ascii_only in (True, False):
                made = made.replace(json.dumps(secret, ensure_ascii=ascii_only)[1:-1], HIDDEN)
        return redact(made)


def _find_secrets(session: Session, config: Path | None) -> frozenset[str]:
    """Return the secrets that this machine's settings hold, wherever they may turn up."""
    found = {session.token or "", os.environ.get("SENDENSE_TOKEN", "")}
    urls = [value for name, value in os.environ.items() if name.startswith("SENDENSE_")]
    try:
        settings, _ = _read_settings(config)
        urls += [settings.database_url, settings.engine_url]
        found.add(settings.credentials_key.get_secret_value())
    except SendenseError:
        pass  # said by settings.json's own entry
    for url in urls:
        found |= _secrets_of(url)
    return frozenset(secret for secret in found if len(secret) >= _SECRET_LENGTH_MIN)


def _secrets_of(text: str) -> set[str]:
    """Return the passwords of a URL, as they are and as they are written; of no URL, none."""
    from sqlalchemy.engine import make_url  # costs every other command 0.1 s
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return set()
    found = {str(url.password or "")}
    for name, value in url.query.items():
        if redact(f"{name}=x") != f"{name}=x":
            found |= {value} if isinstance(value, str) else set(value)
    # A password may be written with signs that belong encoded: up to the last @ it is one.
    authority = text.partition("://")[2].rpartition("@")[0]
    return found | {quote(one, safe="") for one in found} | {authority.partition(":")[2]}


def _read_settings(config: Path | None) -> tuple[Any, dict[str, Any]]:
    from sendense.cli import effective_settings  # pydantic: costs every other command 0.1 s

    return effective_settings.read_with_origins(config=config)


def _about() -> dict[str, Any]:
    return {
        "version": sendense.__version__,
        "created_at": clock.format_utc(datetime.now(UTC)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(
            sorted((one.name, one.version) for one in metadata.distributions() if one.name)
        ),
        # Names only: what stands in them may be anything.
        "variables": sorted(name for name in os.environ if name.startswith("SENDENSE_")),
    }


def _settings(config: Path | None) -> dict[str, Any]:
    settings, origins = _read_settings(config)
    return {
        name: {"value": value, "origin": origins[name]}
        for name, value in settings.model_dump(mode="json").items()
    }


def _data_dir(config: Path | None, given: Path | None) -> dict[str, Any]:
    """Return the names, sizes and modes of what lies in the data directory, and the room left."""
    folder = given or _read_settings(config)[0].data_dir
    usage = shutil.disk_usage(folder)
    entries = {}
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        status = entry.stat(follow_symlinks=False)
        entries[entry.name] = {
            "size_bytes": status.st_size,
            "mode": stat.filemode(status.st_mode),
            "modified_at": clock.format_utc(datetime.fromtimestamp(status.st_mtime, UTC)),
        }
    return {
        "path": str(folder),
        "capacity_bytes": usage.total,
        "free_bytes": usage.free,
        "entries": entries,
    }


def _health(session: Session) -> Any:
    try:
        return session.api.get("health").data
    except Failure as problem:
        if problem.body:  # it answers, and says what is wrong
            return json.loads(problem.body)
        raise


def _jobs(session: Session) -> list[Any]:
    """Return the last jobs, those that failed with their steps and log."""
    listed = session.api.get("jobs", limit=JOBS_MAX).data["jobs"]
    return [
        session.api.get("jobs", job["job_id"]).data if job.get("status") == "failed" else job
        for job in listed
    ]


def _sources(session: Session) -> list[Any]:
    """Return the sources without their configurations, which are about other systems."""
    listed = session.api.get("sources").data["sources"]
    return [{key: value for key, value in one.items() if key != "config"} for one in listed]


def _journal() -> str:
    if shutil.which("journalctl") is None:
        raise FileNotFoundError("there is no journalctl here; add the server's log by hand")
    done = subprocess.run(
        [
            *("journalctl", "--unit", "sendense*", "--lines", str(JOURNAL_LINES_MAX)),
            *("--output", "short-iso", "--no-pager", "--quiet"),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_JOURNAL_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise OSError(f"journalctl failed: {done.stderr.strip()[:500]}")
    return done.stdout


def _write(path: Path, bundle: _Bundle, now: datetime) -> int:
    """Write the archive for its owner only, never over another file; return its size."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in bundle.members.items():
            info = tarfile.TarInfo(f"sendense-support/{name}")
            info.size, info.mode, info.mtime = len(content), 0o600, int(now.timestamp())
            tar.addfile(info, io.BytesIO(content))
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(archive.getvalue())
    except FileExistsError:
        raise Exists(
            f"{path} exists", kind="bundle-exists", hint="name another file by --output"
        ) from None
    except OSError as error:
        raise Denied(
            f"cannot write {path}: {error.strerror}",
            kind="bundle-denied",
            hint="name another file by --output",
        ) from error
    return len(archive.getvalue())
