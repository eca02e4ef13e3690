"""Repositories as the API shows them."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
    computed_field,
    model_validator,
)
from pydantic.config import JsonDict

from sendense.hub.model import PATH_LENGTH_MAX, Accepted, Answer, Moment, Name, Request

_EXAMPLE: JsonDict = {
    "name": "local-backup-repo",
    "type": "local",
    "config": {"path": "/var/lib/sendense/backups"},
}


class RepositoryType(StrEnum):
    """What a repository stands on."""

    LOCAL = "local"


class LocalConfig(Request):
    """A directory of the machine that hub and worker run on, or a share mounted there."""

    path: Annotated[StrictStr, StringConstraints(min_length=1, max_length=PATH_LENGTH_MAX)]
    chunk_size: Annotated[
        StrictInt | None,
        Field(description="Bytes, a power of two; left out, the format's default.", gt=0),
    ] = None


class CreateRepository(Request):
    """A repository to register; made where its folder is missing or empty."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    type: RepositoryType
    config: LocalConfig


class TestRepository(Request):
    """A repository to try before it is registered."""

    __test__ = False  # no test of pytest's
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    type: RepositoryType
    config: LocalConfig
    name: Name | None = None


class ChangeRepository(Request):
    """What a user may set of a repository."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": False}]})

    name: Name | None = None
    enabled: Annotated[
        StrictBool | None, Field(description="Whether backups may be written to it.")
    ] = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.name is None and self.enabled is None:
            raise ValueError("give name or enabled")
        return self


class Repository(Answer):
    """A repository as last measured."""

    id: str

    @computed_field(description="The same as id, as requests and other answers call it.")  # type: ignore[prop-decorator] # pydantic documents it so
    @property
    def repository_id(self) -> str:
        """The id under the name that other answers give it."""
        return self.id

    name: str
    type: RepositoryType
    uuid: Annotated[str, Field(description="The id that the repository itself carries.")]
    config: dict[str, Any]
    enabled: bool
    chunk_size: int
    capacity_bytes: int | None
    free_bytes: int | None
    measured_at: Moment | None
    trouble: Annotated[str | None, Field(description="What is wrong with it, or null.")]
    backup_count: int
    created_at: Moment
    updated_at: Moment
    warnings: Annotated[list[str], Field(description="What a user should know.")]


class RepositoryList(Answer):
    """A page of repositories in the order of their names."""

    repositories: list[Repository]
    total: int


class TestResult(Answer):
    """What a try found; problems come as problem documents instead."""

    __test__ = False  # no test of pytest's

    usable: bool
    exists: Annotated[bool, Field(description="False: it would be made.")]
    detail: str
    capacity_bytes: int | None
    free_bytes: int | None


class Storage(Answer):
    """Capacity, measured now."""

    repository_id: str
    capacity_bytes: int | None
    free_bytes: int | None
    used_bytes: Annotated[
        int | None, Field(description="Of the file system, by whatever lies on it.")
    ]
    backup_count: int
    measured_at: Moment


class CheckRepository(Request):
    """How deep to check."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"read_data": False}]})

    read_data: Annotated[
        StrictBool, Field(description="Also read and verify every stored chunk.")
    ] = False


class CheckAccepted(Accepted):
    """A check was started; the job's `result` will hold what it found."""

    repository_id: str
