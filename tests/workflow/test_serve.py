import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sendense.cli import serve
from sendense.core.errors import Denied
from sendense.settings import Settings

SECONDS_MAX = 60.0
SENDENSE = [sys.executable, "-m", "sendense.cli.main"]
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")
} | {"SENDENSE_LEASE_SECONDS": "2"}


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server on a free port; give it and its address once it says that it is ready."""
    command = [*SENDENSE, "serve", "--data-dir", str(folder), "--port", "0", "--no-auth"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("Sendense listens on http://127.0.0.1:"), line
            yield process, line.split()[-1]
        finally:
            for worker in _workers(folder):
                worker.kill()
            process.kill()


def _workers(folder: Path) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "worker" in one.cmdline() and one.environ().get("SENDENSE_DATA_DIR") == str(folder):
                found.append(one)
    return found


def _until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(int(SECONDS_MAX / 0.1)):
        if condition():
            return
        waiting.wait(0.1)
    raise AssertionError("it never happened")


def _refused(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*SENDENSE, "serve", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=SECONDS_MAX,
        check=False,
    )
    return done.returncode, done.stderr


def _health(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{url}/health").json()
    return answer


def test_the_server_serves_restarts_its_worker_and_stops_cleanly(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with _serve(folder) as (process, url):
        assert httpx.get(f"{url}/backups").json() == {"backups": [], "total": 0}
        assert _health(url)["workers_alive"] == 1

        status, text = _refused("--data-dir", str(folder), "--port", "0", "--no-auth")
        assert (status, "another server runs on" in text) == (4, True)

        (worker,) = _workers(folder)
        worker.kill()
        _until(lambda: worker.pid not in {one.pid for one in _workers(folder)})
        _until(lambda: bool(_workers(folder)) and _health(url)["workers_alive"] == 1)

        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SECONDS_MAX) == 0
        assert _workers(folder) == []


def test_a_frozen_worker_is_ended_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with _serve(folder) as (_, url):
        (worker,) = _workers(folder)
        worker.suspend()
        _until(lambda: not worker.is_running())
        _until(lambda: bool(_workers(folder)) and _health(url)["workers_alive"] == 1)
        listed = httpx.get(f"{url}/workers").json()["workers"]
        (found,) = [one for one in listed if one["status"] == "live"]
        assert found["pid"] == _workers(folder)[0].pid
        assert found["labels"] == {"host": socket.gethostname()}


def test_the_files_of_a_data_directory_open_to_all_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    with _serve(folder):
        modes = {path.name: path.stat().st_mode & 0o077 for path in folder.rglob("*")}
    assert {"catalog.sqlite", "catalog.sqlite-wal", "engine.sqlite", "locks"} <= set(modes)
    assert set(modes.values()) == {0}, modes


def test_a_worker_whose_hub_was_killed_is_found_again_or_ends(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with _serve(folder) as (first, _):
        (worker,) = _workers(folder)
        first.kill()
        first.wait()
        assert worker.is_running()
        with _serve(folder) as (second, url):
            _until(lambda: _health(url)["workers_alive"] == 1)
            # Idle, it ends by itself; the new hub has a worker of its own then.
            _until(lambda: not worker.is_running())
            _until(lambda: bool(_workers(folder)) and _health(url)["workers_alive"] == 1)
            second.send_signal(signal.SIGINT)
            assert second.wait(timeout=SECONDS_MAX) == 0


def test_a_busy_port_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])

        status, text = _refused("--data-dir", str(tmp_path / "data"), "--port", port, "--no-auth")

    assert (status, "address already in use" in text) == (6, True)
    assert not (tmp_path / "data" / "catalog.sqlite").exists()


def test_without_accounts_it_serves_only_when_told_so(tmp_path: Path) -> None:
    status, text = _refused("--data-dir", str(tmp_path / "data"))

    assert (status, "--no-auth" in text) == (5, True)
    assert not (tmp_path / "data").exists()


def test_a_localhost_that_is_another_machine_is_not_listened_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As an edited /etc/hosts would have it: 0.0.0.0 is every address of this machine.
    find = socket.socket.bind
    monkeypatch.setattr(
        socket.socket,
        "bind",
        lambda self, address: find(self, ("0.0.0.0", address[1])),  # noqa: S104 - what it is about
    )
    settings = Settings(data_dir=tmp_path, host="localhost", port=0, no_auth=True)
    with pytest.raises(Denied, match="loopback"), serve._listening(settings):
        pass


def test_answers_never_wait_for_delayed_acknowledgements(tmp_path: Path) -> None:
    async def serve_one() -> int:
        options: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            options.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        settings = Settings(data_dir=tmp_path, host="127.0.0.1", port=0, no_auth=True)
        with serve._listening(settings) as listener:
            async with await asyncio.start_server(accept, sock=listener):
                with socket.create_connection(listener.getsockname()):
                    return await asyncio.wait_for(options, 10)

    assert asyncio.run(serve_one()) == 1


def test_without_accounts_it_never_leaves_loopback(tmp_path: Path) -> None:
    status, text = _refused(
        "--data-dir", str(tmp_path / "data"), "--no-auth", "--host", "192.0.2.1"
    )

    assert (status, "loopback" in text) == (2, True)
    assert not (tmp_path / "data").exists()
