"""A throw-away MariaDB from Debian's package."""

import secrets
import shutil
from typing import Any

import pymysql

from tests.servers.process import Server

SBIN = "/usr/sbin"  # where Debian keeps mariadbd, and what a plain user's PATH lacks
OWNER = "sendense"
# What docs/operations/databases.md tells operators to grant.
PRIVILEGES = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES"
SUPERUSER = "tests"


def find_program() -> str | None:
    """Return where the server's program is, or None."""
    if shutil.which("mariadb-install-db") is None:
        return None
    return shutil.which("mariadbd") or shutil.which("mariadbd", path=SBIN)


class MariadbServer(Server):
    """MariaDB as an operator may have set it up: other character set and time zone than ours."""

    name = "mariadb"

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)
        super().__init__()

    def initialise(self) -> None:
        self.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={self.folder}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
                "--innodb-log-file-size=16M",
            ]
        )
        # Executed at every start, so it must not mind what is there.
        (self.root / "users.sql").write_text(
            "ALTER USER root@localhost ACCOUNT LOCK;\n"
            f"CREATE OR REPLACE USER {SUPERUSER}@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO {SUPERUSER}@'127.0.0.1' WITH GRANT OPTION;\n"
        )

    def command(self) -> list[str]:
        options = {
            "datadir": str(self.folder),
            "init-file": str(self.root / "users.sql"),
            "bind-address": "127.0.0.1",
            "port": str(self.port),
            "socket": str(self.root / "socket"),
            "pid-file": str(self.root / "pid"),
            "character-set-server": "latin1",
            "collation-server": "latin1_swedish_ci",
            "default-time-zone": "+05:30",
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "16M",
            "innodb-flush-log-at-trx-commit": "2",  # to the kernel: survives a kill
            "innodb-flush-method": "nosync",
            "max-connections": "200",
        }
        return [
            str(find_program()),
            "--no-defaults",
            "--skip-name-resolve",
            "--skip-log-bin",
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def ask(self, statement: str, *, database: str | None = None) -> Any:
        connection = pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=SUPERUSER,
            password=self.password,
            database=database,
            connect_timeout=10,
            read_timeout=60,
            autocommit=True,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
            return row[0] if row else None

    def create_database(self) -> str:
        """Create a database of a user that may do nothing else."""
        self._databases += 1
        name = f"catalog_{self._databases}"
        self.ask(f"CREATE DATABASE {name}")
        self.ask(f"CREATE USER IF NOT EXISTS {OWNER}@'127.0.0.1' IDENTIFIED BY '{self.password}'")
        self.ask(f"GRANT {PRIVILEGES} ON {name}.* TO {OWNER}@'127.0.0.1'")
        return (
            f"mysql+pymysql://{OWNER}:{self.password}@127.0.0.1:{self.port}/{name}?charset=utf8mb4"
        )
