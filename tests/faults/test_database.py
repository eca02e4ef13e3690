"""The database server is restarted in the middle of a backup."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import served
from tests.faults.conftest import Disk
from tests.faults.served import digest, until
from tests.servers.process import Server

SLOW_MILLISECONDS = 100
LEASE_SECONDS = "30"  # longer than the server is away, on a busy machine too


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "killed"),
    [
        pytest.param("postgresql", False, id="postgresql-fast"),
        pytest.param("postgresql", True, id="postgresql-immediate"),
        pytest.param("mariadb", False, id="mariadb"),
    ],
)
def test_a_backup_survives_the_restart_of_its_database_server(
    kind: str,
    killed: bool,  # noqa: FBT001 - a parameter of the test
    private_server: Callable[[str], Server],
    tmp_path: Path,
    shim: Path,
    disk: Disk,
    long_run: bool,  # noqa: FBT001 - a fixture
) -> None:
    if not long_run and killed:
        pytest.skip("the other mode runs; --long runs both")
    server = private_server(kind)
    environment = {
        "LD_PRELOAD": str(shim),
        "SENDENSE_FAULTS": str(disk.control),
        "SENDENSE_DATABASE_URL": server.create_database(),
        "SENDENSE_LEASE_SECONDS": LEASE_SECONDS,
    }
    with served.serve(tmp_path, environment=environment) as hub:
        hub.add_repository("main", tmp_path / "repository")
        image = hub.add_vm("web", seed=1)
        before = digest(image)
        earlier = hub.back_up("web")
        hub.write(image, seed=2)
        disk.slow(tmp_path / "repository", SLOW_MILLISECONDS)
        started = hub.start_backup("web")
        until(lambda: hub.job(started["job_id"])["bytes_done"])

        if killed:
            server.kill()
        else:
            server.stop()
        server.start()

        job = hub.wait(started["job_id"])
        disk.mend()
        assert job["status"] == "completed", job
        hub.check_restores(started["backup_id"], digest(image))
        hub.check_restores(earlier["backup_id"], before)
        hub.back_up("web")
