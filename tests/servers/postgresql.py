"""A throw-away PostgreSQL from Debian's package."""

import secrets
import shutil
import signal
from pathlib import Path
from typing import Any

import psycopg

from tests.servers.process import Server

INSTALLATIONS = Path("/usr/lib/postgresql")  # not on PATH: Debian keeps versions side by side
OWNER = "sendense"


def find_programs() -> Path | None:
    """Return the folder of the newest installed server's programs, or None."""
    on_path = shutil.which("initdb")
    versions = [place for place in INSTALLATIONS.glob("*/bin") if (place / "initdb").is_file()]
    newest = max(versions, key=lambda place: float(place.parent.name), default=None)
    return newest or (Path(on_path).resolve().parent if on_path else None)


class PostgresqlServer(Server):
    """PostgreSQL as an operator may have set it up: other collation and time zone than ours."""

    name = "postgresql"
    stop_signal = signal.SIGINT  # "fast": roll back what runs, then shut down

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)
        super().__init__()

    def initialise(self) -> None:
        secret = self.root / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # in a folder that only the server's user may enter
        self.run(
            [
                str(self._program("initdb")),
                f"--pgdata={self.folder}",
                "--username=postgres",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--locale-provider=icu",
                "--icu-locale=en-US",
                "--no-sync",
            ]
        )

    def command(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "200",
            "timezone": "Asia/Kolkata",
            "log_timezone": "UTC",
        }
        return [
            str(self._program("postgres")),
            "-D",
            str(self.folder),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ]

    def ask(self, statement: str, *, database: str = "postgres") -> Any:
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=self.password,
            dbname=database,
            connect_timeout=10,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    def create_database(self, *, template: str = "template0") -> str:
        """Create a database of a user that may do nothing else; `template` is copied."""
        self._databases += 1
        name = f"catalog_{self._databases}"
        if self._databases == 1:
            self.ask(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{self.password}'")
        self.ask(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template}")
        return f"postgresql+psycopg://{OWNER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def _program(self, name: str) -> Path:
        programs = find_programs()
        assert programs is not None, "PostgreSQL is not installed"
        return programs / name
