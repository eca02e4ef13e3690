"""Every option of server and worker: typed, documented, read once, from `SENDENSE_*`."""

import ipaddress
import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sendense.core.errors import Invalid
from sendense.db import url as urls
from sendense.durable import placement

ENV_PREFIX = "SENDENSE_"
PORT_DEFAULT = 8082
LEASE_SECONDS_DEFAULT = 60.0  # outlives a short outage of the database; see durable/lease.py
EVERY_HOURS_MAX = 24.0 * 366  # a typing error: whoever wants none says 0
LEASE_SECONDS_MIN = 1.0  # a busy machine may not run a thread for longer
PORT_MAX = 65535


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log messages are written."""

    AUTO = "auto"  # text on a terminal, JSON elsewhere
    TEXT = "text"
    JSON = "json"


class Settings(BaseSettings):
    """The options, from keyword arguments and else from the environment."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="ignore",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,  # a URL may hold a password
    )

    # What an export leaves out: it differs on the next machine, is secret and sealed apart, or is
    # the server's alone, which no worker knows.
    OF_MACHINE: ClassVar[frozenset[str]] = frozenset(
        {
            *("data_dir", "database_url", "engine_url"),
            *("credentials_key", "credentials_key_file"),
            *("host", "port", "no_auth"),
        }
    )

    data_dir: Annotated[
        Path,
        Field(description="Catalog, engine tables, locks; its user folders may hold backups."),
    ] = Path("/var/lib/sendense")
    database_url: Annotated[
        str,
        Field(
            description="The catalog's database; by default SQLite in the data directory.",
            repr=False,  # it may hold a password
        ),
    ] = ""
    engine_url: Annotated[
        str,
        Field(
            description="The job engine's database; by default the catalog's where that is on"
            " PostgreSQL, else SQLite in the data directory.",
            repr=False,
        ),
    ] = ""
    credentials_key: Annotated[
        SecretStr,
        Field(
            description="The key that seals sources' credentials, as 64 hexadecimal digits; better"
            " a systemd credential or a file.",
        ),
    ] = SecretStr("")
    credentials_key_file: Annotated[
        Path | None,
        Field(description="A file that holds that key; by default credentials.key in data_dir."),
    ] = None
    worker_labels: Annotated[
        dict[str, str],
        NoDecode,
        Field(description="What this worker may be demanded to have: key=value,key=value."),
    ] = {}
    allowed_dirs: Annotated[
        tuple[Path, ...],
        NoDecode,
        Field(description="Further folders that requests may name, separated by colons."),
    ] = ()
    lease_seconds: Annotated[
        float,
        Field(ge=LEASE_SECONDS_MIN, description="How long a silent worker counts as alive."),
    ] = LEASE_SECONDS_DEFAULT
    gc_every_hours: Annotated[
        float,
        Field(
            ge=0,
            le=EVERY_HOURS_MAX,
            description="How often the garbage of each repository is collected; 0 for never.",
        ),
    ] = 24.0
    hub_export_every_hours: Annotated[
        float,
        Field(
            ge=0,
            le=EVERY_HOURS_MAX,
            description="How often the catalog is exported into each repository; 0 for never.",
        ),
    ] = 24.0
    host: Annotated[str, Field(description="The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=PORT_MAX, description="The port; 0 takes a free one.")] = (
        PORT_DEFAULT
    )
    no_auth: Annotated[
        bool, Field(description="Serve without accounts; only on a loopback address.")
    ] = False
    log_level: Annotated[LogLevel, Field(description="How much is logged.")] = LogLevel.INFO
    log_format: Annotated[
        LogFormat,
        Field(description="`text`, `json`, or `auto`: text on a terminal and JSON elsewhere."),
    ] = LogFormat.AUTO
    log_levels: Annotated[
        dict[str, LogLevel],
        NoDecode,
        Field(description="Other levels for parts of the product: logger=level,logger=level."),
    ] = {}

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: str) -> str:
        """Refuse what cannot hold the catalog before anything is opened."""
        try:
            urls.parse(value or "sqlite://")
        except Invalid as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return value

    @field_validator("allowed_dirs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Read `/a:/b` from the environment, as PATH is written."""
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value

    @field_validator("worker_labels", mode="before")
    @classmethod
    def _parse_labels(cls, value: Any) -> Any:
        """Read `site=berlin,storage=nas1` from the environment; `host` is there by itself."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, (list, tuple)):
            value = dict(placement.parse(part) for part in value)
        if len({placement.HOST, *value}) > placement.LABELS_MAX:
            raise ValueError(f"a worker has at most {placement.LABELS_MAX} labels, `host` included")
        return value

    @field_validator("log_levels", mode="before")
    @classmethod
    def _parse_levels(cls, value: Any) -> Any:
        """Read `sendense.nbd=debug,dbos=info` from the environment."""
        if not isinstance(value, str):
            return value
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        if wrong := [name for name, equals, _ in pairs if not equals]:
            raise ValueError(f"{wrong[0]!r} has no level; write logger=level,logger=level")
        return {name.strip(): level.strip() for name, _, level in pairs}

    @field_validator("credentials_key_file", mode="before")
    @classmethod
    def _read_none(cls, value: Any) -> Any:
        """An empty name means none."""
        return value or None

    @field_validator("data_dir", "allowed_dirs", "credentials_key_file")
    @classmethod
    def _make_absolute(
        cls, value: Path | tuple[Path, ...] | None
    ) -> Path | tuple[Path, ...] | None:
        """A relative folder is meant from where the program was started."""
        if value is None:
            return None
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
        """Where the job engine's tables are: it runs on SQLite and PostgreSQL only."""
        if self.engine_url:
            return self.engine_url
        if self.database_url.startswith("postgresql"):
            return self.database_url
        return f"sqlite:///{self.data_dir / 'engine.sqlite'}"

    @property
    def worker_labels_with_host(self) -> dict[str, str]:
        """What this worker may be demanded to have."""
        return {placement.HOST: socket.gethostname(), **self.worker_labels}

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
