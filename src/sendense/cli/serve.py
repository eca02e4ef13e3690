"""`sendense serve`: the whole product on one machine.

API in this process, jobs in a worker that is its child: a worker that crashes never takes the API
down, and one whose hub was killed finishes what it does and is found again by the next hub.
"""

import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import uvicorn

from sendense import app
from sendense.cli import logs, options
from sendense.cli.command import Session, reporting
from sendense.cli.options import AllowDirs, DataDir
from sendense.cli.output import Output
from sendense.cli.supervisor import Supervisor
from sendense.core.errors import Conflict, Denied, Invalid, Unavailable
from sendense.settings import Settings, is_loopback

_log = logging.getLogger(__name__)

# Open requests, event streams among them, get this long to end; clients connect again.
STOP_SECONDS = 3
READY_SECONDS_MAX = 20.0  # a worker that does not come up in this time is told about by health


def serve(
    data_dir: DataDir = None,
    host: Annotated[
        str | None,
        typer.Option(help="The address to listen on; by default 127.0.0.1.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="The port; by default 8082, 0 takes a free one.", show_default=False),
    ] = None,
    allow_dir: AllowDirs = None,
    no_auth: Annotated[
        bool | None,
        typer.Option("--no-auth", help="Serve without accounts; only on a loopback address."),
    ] = None,
) -> None:
    """Run the server: API and one worker, until stopped."""
    with reporting(Session(Output(as_json=False))):
        settings = options.read_settings(
            data_dir=data_dir, host=host, port=port, allowed_dirs=allow_dir, no_auth=no_auth
        )
        if not settings.no_auth:
            raise Denied(
                "this version has no accounts yet, so it serves only with --no-auth",
                kind="accounts-missing",
                hint="start it with --no-auth; it then binds to a loopback address only",
            )
        logs.configure(settings.log_level)
        # The catalog names all that is protected; the folder may be older than we are, and open.
        os.umask(options.UMASK)
        with _alone(settings), _listening(settings) as listener:
            _run(settings, listener)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the data directory: two hubs on one would both migrate and supervise."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            settings.data_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise Denied(
            f"cannot use the data directory {settings.data_dir}: {error.strerror}",
            kind="data-dir-denied",
            hint="choose another one by --data-dir, or give this user access to it",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"another server runs on {settings.data_dir}",
                kind="data-dir-busy",
                hint="stop it first, or choose another --data-dir",
            ) from error
        yield
    finally:
        os.close(lock)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """Take the port before anything else is done, so that a busy one changes nothing."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {settings.host}:{settings.port}: "
                f"{(error.strerror or str(error)).lower()}",
                kind="port-busy",
                hint="choose another port by --port; 0 takes a free one",
            ) from error
        except OverflowError as error:
            raise Invalid(f"{settings.port} is no port", kind="settings-invalid") from error
        address = listener.getsockname()[0]
        if settings.no_auth and not is_loopback(address):
            raise Denied(
                f"--no-auth binds to a loopback address only, and {settings.host} is {address}",
                kind="host-not-allowed",
                hint="see what this machine takes for localhost, in /etc/hosts",
            )
        yield listener


class _Server(uvicorn.Server):
    """uvicorn, which tells when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets=sockets)
        self.ready.set()


def _run(settings: Settings, listener: socket.socket) -> None:
    api = app.create_api(settings)
    hub = api.state.hub
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        api,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        # Its own host and port: a name in `--host` must not hide where it listens.
        server_header=False,
    )
    server = _Server(config)
    # uvicorn raises the signal again when it has stopped; by default that would end the process
    # before the worker is told.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    supervisor = Supervisor(_worker_command(), _worker_environment(settings), hub.count_workers)
    supervisor.start()
    threading.Thread(
        target=_announce, args=(server, supervisor, host, port), name="announce", daemon=True
    ).start()
    try:
        server.run(sockets=[listener])
    finally:
        _log.info("stopping")
        supervisor.stop()


def _announce(server: _Server, supervisor: Supervisor, host: str, port: int) -> None:
    """Print the address once API and worker are there."""
    server.ready.wait()
    if not supervisor.wait_alive(READY_SECONDS_MAX):
        _log.warning("no worker is alive yet; jobs wait")
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"Sendense listens on http://{shown}:{port}/api/v1\n")
    sys.stdout.flush()


def _worker_command() -> list[str]:
    return [sys.executable, "-m", "sendense.cli.main", "worker", "--parent", str(os.getpid())]


def _worker_environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with the settings that options changed."""
    told: dict[str, Any] = {
        "SENDENSE_DATA_DIR": settings.data_dir,
        "SENDENSE_DATABASE_URL": settings.database_url,
        "SENDENSE_ENGINE_URL": settings.engine_url,
        "SENDENSE_ALLOWED_DIRS": os.pathsep.join(str(path) for path in settings.allowed_dirs),
        "SENDENSE_LEASE_SECONDS": settings.lease_seconds,
        "SENDENSE_LOG_LEVEL": settings.log_level,
    }
    return {**os.environ, **{name: str(value) for name, value in told.items()}}
