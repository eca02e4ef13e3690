"""The servers themselves: what the tests on databases rely on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from tests.servers import fixtures
from tests.servers.process import START_SECONDS_MAX, STOP_SECONDS_MAX, Server, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
SERVERS = fixtures.KINDS[1:]
HOLDER = """
import sys
from tests.servers.{kind} import {name}
server = {name}()
server.freeze()
print(*(one.pid for one in server.process.list_all()), server.root, flush=True)
sys.stdin.read()
"""


def run(url: str, *statements: str) -> object:
    engine = create_engine(url)
    with engine.begin() as connection:
        results = [connection.execute(text(statement)) for statement in statements]
        last = results[-1].scalar() if results[-1].returns_rows else None
    engine.dispose()
    return last


@pytest.mark.parametrize("kind", SERVERS)
def test_each_call_gives_an_empty_database_of_its_own(
    kind: str, database_url: Callable[[str], str]
) -> None:
    first, second = database_url(kind), database_url(kind)
    assert first != second
    for url in (first, second):
        run(url, "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1)")
        assert run(url, "SELECT count(*) FROM t") == 1


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_keeps_its_data_when_it_is_stopped_killed_and_frozen(
    kind: str, private_server: Callable[[str], Server]
) -> None:
    server = private_server(kind)
    url = server.create_database()
    run(url, "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1)")
    server.restart()
    run(url, "INSERT INTO t VALUES (2)")
    server.kill()
    server.start()
    server.freeze()
    # A child that ended just before stays a zombie: its parent is frozen too.
    frozen = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    wait_until(
        lambda: {one.status() for one in server.process.list_all()} <= frozen,
        STOP_SECONDS_MAX,
        "the server's stand-still",
    )
    server.thaw()
    assert run(url, "SELECT count(*) FROM t") == 2


@pytest.mark.parametrize("kind", SERVERS)
def test_even_a_frozen_server_ends_with_a_test_process_that_is_killed(kind: str) -> None:
    name = {"postgresql": "PostgresqlServer", "mariadb": "MariadbServer"}[kind]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(kind=kind, name=name)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        *pids, folder = holder.stdout.readline().split()
        servers = [psutil.Process(int(pid)) for pid in pids]
        if os.geteuid() == 0:
            assert {one.username() for one in servers} == {"nobody"}
        holder.send_signal(signal.SIGKILL)
        holder.wait(START_SECONDS_MAX)
        _, alive = psutil.wait_procs(servers, timeout=STOP_SECONDS_MAX)
        assert not alive
        wait_until(lambda: not Path(folder).exists(), STOP_SECONDS_MAX, "the folder's end")
