"""A real S3 server on a folder: Versity's gateway, by a launcher of ours (tests/s3/launcher)."""

import socket
from pathlib import Path

from demo import golang

LAUNCHER = golang.ROOT / "tests" / "s3" / "launcher"
BUCKET = "backups"
ACCESS_KEY = "sendense-tests"
SECRET_KEY = "not-a-secret"  # noqa: S105 - of a server that lives as long as a test
REGION = "us-east-1"


def build() -> Path:
    """Return the program, built once for each state of its source; see `golang.build`."""
    return golang.build(LAUNCHER, "s3server")


class Server(golang.Program):
    """A running server with one empty bucket."""

    def __init__(self, program: Path, folder: Path) -> None:
        (folder / "buckets" / BUCKET).mkdir(parents=True, exist_ok=True)
        (folder / "versions").mkdir(exist_ok=True)
        # The gateway does not tell which port it was given, so one that is free now is asked for.
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        super().__init__(
            program,
            [
                *("-folder", str(folder / "buckets"), "-listen", f"127.0.0.1:{port}"),
                *("-versions", str(folder / "versions")),
            ],
            {"S3_ACCESS_KEY": ACCESS_KEY, "S3_SECRET_KEY": SECRET_KEY},
        )

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"
