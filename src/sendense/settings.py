"""Every option of server and worker: typed, documented, read once, from `SENDENSE_*`."""

import ipaddress
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PORT_DEFAULT = 8082
LEASE_SECONDS_DEFAULT = 60.0  # outlives a short outage of the database; see durable/lease.py
LEASE_SECONDS_MIN = 1.0  # a busy machine may not run a thread for longer
PORT_MAX = 65535


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Settings(BaseSettings):
    """The options, from keyword arguments and else from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="SENDENSE_", extra="ignore", frozen=True, validate_default=True
    )

    data_dir: Annotated[
        Path,
        Field(description="Catalog, engine tables, locks; its user folders may hold backups."),
    ] = Path("/var/lib/sendense")
    database_url: Annotated[
        str, Field(description="The catalog's database; by default SQLite in the data directory.")
    ] = ""
    engine_url: Annotated[
        str, Field(description="The job engine's database; by default SQLite beside the catalog.")
    ] = ""
    allowed_dirs: Annotated[
        tuple[Path, ...],
        NoDecode,
        Field(description="Further folders that requests may name, separated by colons."),
    ] = ()
    lease_seconds: Annotated[
        float,
        Field(ge=LEASE_SECONDS_MIN, description="How long a silent worker counts as alive."),
    ] = LEASE_SECONDS_DEFAULT
    host: Annotated[str, Field(description="The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=PORT_MAX, description="The port; 0 takes a free one.")] = (
        PORT_DEFAULT
    )
    no_auth: Annotated[
        bool, Field(description="Serve without accounts; only on a loopback address.")
    ] = False
    log_level: Annotated[LogLevel, Field(description="How much is logged.")] = LogLevel.INFO

    @field_validator("allowed_dirs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Read `/a:/b` from the environment, as PATH is written."""
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value

    @field_validator("data_dir", "allowed_dirs")
    @classmethod
    def _make_absolute(cls, value: Path | tuple[Path, ...]) -> Path | tuple[Path, ...]:
        """A relative folder is meant from where the program was started."""
        if isinstance(value, Path):
            return value.expanduser().absolute()
        return tuple(path.expanduser().absolute() for path in value)

    @model_validator(mode="after")
    def _bind_to_loopback(self) -> Self:
        """Without accounts nobody but this machine's users may reach the server, ever."""
        if self.no_auth and not is_loopback(self.host):
            raise ValueError(f"--no-auth binds to a loopback address only, and {self.host} is none")
        return self

    @property
    def catalog_url(self) -> str:
        """Where the catalog is."""
        return self.database_url or f"sqlite:///{self.data_dir / 'catalog.sqlite'}"

    @property
    def jobs_url(self) -> str:
        """Where the job engine's tables are."""
        return self.engine_url or f"sqlite:///{self.data_dir / 'engine.sqlite'}"

    @property
    def scratch_dir(self) -> Path:
        """A private folder for what a snapshot needs while it lives."""
        return self.data_dir / "scratch"

    @property
    def lock_dir(self) -> Path:
        """Where workers of this machine hold the locks that say they are alive."""
        return self.data_dir / "locks"


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    A name other than `localhost` is not: who answers for names may change.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
