"""`sendense serve`: the whole product on one machine.

API in this process, jobs in a worker that is its child: a worker that crashes never takes the API
down, and one whose hub was killed finishes what it does and is found again by the next hub.
"""

import fcntl
import gc
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
from sendense.cli import config_file, effective_settings, logs
from sendense.cli.command import Session, reporting
from sendense.cli.notify import notify
from sendense.cli.options import AllowDirs, Config, DataDir
from sendense.cli.output import Output
from sendense.cli.supervisor import Supervisor
from sendense.core.errors import Conflict, Denied, Invalid, Unavailable
from sendense.settings import Settings, is_loopback

_log = logging.getLogger(__name__)

# Open requests, event streams among them, get this long to end; clients connect again.
STOP_SECONDS = 3
GARBAGE_OBJECTS = 20_000  # a list of 1000 backups has some; below 10 MB of garbage in cycles
READY_SECONDS_MAX = 20.0  # a worker that does not come up in this time is told about by health


def serve(
    config: Config = None,
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
        settings = effective_settings.read_settings(
            config=config,
            data_dir=data_dir,
            host=host,
            port=port,
            allowed_dirs=allow_dir,
            no_auth=no_auth,
        )
        if not settings.no_auth:
            raise Denied(
                "this version has no accounts yet, so it serves only with --no-auth",
                kind="accounts-missing",
                hint="start it with --no-auth; it then binds to a loopback address only",
            )
        logs.configure(settings)
        # The catalog names all that is protected; the folder may be older than we are, and open.
        os.umask(effective_settings.UMASK)
        with (
            alone(settings),
            _listening(settings) as listener,
            # A frozen worker is ended here too: nobody else may be there to do it.
            app.create_reaper(settings).running(lease_seconds=settings.lease_seconds),
        ):
            _run(settings, listener)


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
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
    # Named as TCP, or asyncio would not switch Nagle's algorithm off: answers of some sizes would
    # then wait 40 ms for the client's delayed acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
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


def _spare_collections() -> None:
    """Keep the collector of cycles away from what lives as long as the process.

    It walks the whole heap, and half a million objects of modules take 100 ms: of every request
    that makes many objects, one in ten would wait for it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)


def _run(settings: Settings, listener: socket.socket) -> None:
    api = app.create_api(settings)
    _spare_collections()
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
    supervisor = Supervisor(
        _worker_command(),
        _worker_environment(settings),
        count_workers=lambda: app.count_workers_here(settings),
    )
    supervisor.start()
    threading.Thread(
        target=_announce, args=(server, supervisor, host, port), name="announce", daemon=True
    ).start()
    try:
        server.run(sockets=[listener])
    finally:
        _log.info("stopping")
        notify("STOPPING=1")
        supervisor.stop()


def _announce(server: _Server, supervisor: Supervisor, host: str, port: int) -> None:
    """Print the address once API and worker are there."""
    server.ready.wait()
    if not supervisor.wait_alive(READY_SECONDS_MAX):
        _log.warning("no worker is alive yet; jobs wait")
    notify("READY=1")
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"Sendense listens on http://{shown}:{port}/api/v1\n")
    sys.stdout.flush()


def _worker_command() -> list[str]:
    return [sys.executable, "-m", "sendense.cli.main", "worker", "--parent", str(os.getpid())]


def _worker_environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with the settings as they are, wherever they are from."""
    told: dict[str, Any] = {
        config_file.VARIABLE: os.devnull,  # all that a worker uses of a file is told here
        "SENDENSE_DATA_DIR": settings.data_dir,
        "SENDENSE_DATABASE_URL": settings.database_url,
        "SENDENSE_ENGINE_URL": settings.engine_url,
        "SENDENSE_CREDENTIALS_KEY": settings.credentials_key.get_secret_value(),
        "SENDENSE_CREDENTIALS_KEY_FILE": settings.credentials_key_file or "",
        "SENDENSE_ALLOWED_DIRS": os.pathsep.join(str(path) for path in settings.allowed_dirs),
        "SENDENSE_LEASE_SECONDS": settings.lease_seconds,
        "SENDENSE_GC_EVERY_HOURS": settings.gc_every_hours,
        "SENDENSE_HUB_EXPORT_EVERY_HOURS": settings.hub_export_every_hours,
        "SENDENSE_WORKER_LABELS": ",".join(
            f"{key}={value}" for key, value in settings.worker_labels.items()
        ),
        "SENDENSE_LOG_LEVEL": settings.log_level,
        "SENDENSE_LOG_FORMAT": settings.log_format,
        "SENDENSE_LOG_LEVELS": ",".join(f"{k}={v}" for k, v in settings.log_levels.items()),
    }
    return {**os.environ, **{name: str(value) for name, value in told.items()}}
