"""Repositories as the API shows them."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationInfo,
    computed_field,
    model_validator,
)
from pydantic.config import JsonDict

from sendense.hub.model import (
    PATH_LENGTH_MAX,
    Accepted,
    Answer,
    Moment,
    Name,
    Request,
    RequiredLabels,
)
from sendense.repository.descriptor import IMMUTABLE_DAYS_MAX
from sendense.repository.storage.locations import LOCATION_LENGTH_MAX
from sendense.repository.storage.locks import LockMode

_EXAMPLE: JsonDict = {
    "name": "local-backup-repo",
    "type": "local",
    "config": {"path": "/var/lib/sendense/backups"},
}


SECRET_LENGTH_MAX = 1024
LABEL_LENGTH_MAX = 200


class RepositoryType(StrEnum):
    """What a repository stands on."""

    LOCAL = "local"
    S3 = "s3"
    AZURE = "azure"
    GCS = "gcs"


class PlaceConfig(Request):
    """What the places of all repositories share."""

    chunk_size: Annotated[
        StrictInt | None,
        Field(description="Bytes, a power of two; left out, the format's default.", gt=0),
    ] = None
    encryption: Annotated[
        StrictBool, Field(description="Whether a new repository is encrypted; it stays so.")
    ] = True
    immutable_days: Annotated[
        StrictInt,
        Field(
            description="Nobody deletes a backup of a new repository for so long; it stays so.",
            ge=0,
            le=IMMUTABLE_DAYS_MAX,
        ),
    ] = 0
    lock_mode: Annotated[
        LockMode | None,
        Field(description="Let the storage of a new repository lock objects for as long."),
    ] = None
    passphrase: Annotated[
        SecretStr | None,
        Field(
            description="Opens an encrypted repository; a new one gets it beside its recovery key.",
            max_length=SECRET_LENGTH_MAX,
            json_schema_extra={"writeOnly": True},
        ),
    ] = None
    recovery_key: Annotated[
        SecretStr | None,
        Field(
            description="Opens an encrypted repository that exists already.",
            max_length=SECRET_LENGTH_MAX,
            json_schema_extra={"writeOnly": True},
        ),
    ] = None


class LocalConfig(PlaceConfig):
    """A directory of the machine that hub and worker run on, or a share mounted there."""

    path: Annotated[StrictStr, StringConstraints(min_length=1, max_length=PATH_LENGTH_MAX)]

    def to_kept(self) -> dict[str, Any]:
        """Return what the catalog keeps: where the repository is, and no secret."""
        return {"path": self.path}


class ObjectStoreConfig(PlaceConfig):
    """A place in an object store. Its credentials come from the environment of hub and worker."""

    url: Annotated[
        StrictStr,
        Field(
            description="`s3://bucket/prefix?endpoint=…&region=…`,"
            " `az://container/prefix?account=…` or `gs://bucket/prefix`.",
            min_length=1,
            max_length=LOCATION_LENGTH_MAX,
        ),
    ]
    accept_unfit: Annotated[
        StrictBool,
        Field(description="Use a store that failed its trial; two writers at once may lose data."),
    ] = False

    def to_kept(self) -> dict[str, Any]:
        """Return what the catalog keeps: where the repository is, and no secret."""
        return {"url": self.url}


def _choose_config(value: object, info: ValidationInfo) -> object:
    """Read a place's configuration by its repository's type, so that errors name its fields."""
    kind = info.data.get("type", RepositoryType.LOCAL)
    model = LocalConfig if kind is RepositoryType.LOCAL else ObjectStoreConfig
    return value if isinstance(value, PlaceConfig) else model.model_validate(value)


ConfigOf = Annotated[LocalConfig | ObjectStoreConfig, BeforeValidator(_choose_config)]


class CreateRepository(Request):
    """A repository to register; made where its folder or prefix is missing or empty."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    type: RepositoryType
    config: ConfigOf
    required_labels: RequiredLabels = Field(default_factory=dict)


class TestRepository(Request):
    """A repository to try before it is registered."""

    __test__ = False  # no test of pytest's
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    type: RepositoryType
    config: ConfigOf
    name: Name | None = None


class ChangeRepository(Request):
    """What a user may set of a repository."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": False}]})

    name: Name | None = None
    enabled: Annotated[
        StrictBool | None, Field(description="Whether backups may be written to it.")
    ] = None
    required_labels: RequiredLabels | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.name is None and self.enabled is None and self.required_labels is None:
            raise ValueError("give name, enabled or required_labels")
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
    required_labels: dict[str, str]
    enabled: bool
    chunk_size: int
    encrypted: bool
    immutable_days: Annotated[
        int, Field(description="For so long nobody deletes a new backup; 0: not at all.")
    ]
    lock_mode: Annotated[
        LockMode | None, Field(description="How its storage locks objects meanwhile, or null.")
    ]
    capacity_bytes: int | None
    free_bytes: int | None
    measured_at: Moment | None
    trouble: Annotated[str | None, Field(description="What is wrong with it, or null.")]
    backup_count: int
    created_at: Moment
    updated_at: Moment
    warnings: Annotated[list[str], Field(description="What a user should know.")]


class CreatedRepository(Repository):
    """A repository that was registered now."""

    recovery_key: Annotated[
        str | None,
        Field(
            description="Of a repository that was made now, encrypted. It is told this once: keep"
            " it on paper, away from the hub."
        ),
    ] = None


class UnlockRepository(Request):
    """The key of an encrypted repository, given to the hub again. One of the two."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"recovery_key": "SENDENSE-1-…"}]})

    passphrase: Annotated[
        SecretStr | None,
        Field(max_length=SECRET_LENGTH_MAX, json_schema_extra={"writeOnly": True}),
    ] = None
    recovery_key: Annotated[
        SecretStr | None,
        Field(max_length=SECRET_LENGTH_MAX, json_schema_extra={"writeOnly": True}),
    ] = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.passphrase is None) == (self.recovery_key is None):
            raise ValueError("give passphrase or recovery_key, one of them")
        return self


class AddPassphrase(Request):
    """A passphrase that is to open a repository."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"passphrase": "…", "label": "head office"}]}
    )

    passphrase: Annotated[
        SecretStr, Field(max_length=SECRET_LENGTH_MAX, json_schema_extra={"writeOnly": True})
    ]
    label: Annotated[StrictStr, StringConstraints(max_length=LABEL_LENGTH_MAX)] = ""


class Recipient(Answer):
    """Who can open a repository beside whoever has its recovery key."""

    recipient_id: str
    kind: str
    label: str
    created_at: Moment


class RecipientList(Answer):
    """All recipients of a repository, oldest first."""

    recipients: list[Recipient]
    total: int
    damaged: Annotated[list[str], Field(description="Objects that cannot be read.")]


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


class CollectGarbage(Request):
    """How to collect."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"preview": True}]})

    preview: Annotated[StrictBool, Field(description="Only say what would be freed.")] = False
    now: Annotated[
        StrictBool, Field(description="Do not leave a day between condemning and deleting.")
    ] = False
    confirmed: Annotated[
        StrictBool, Field(description="Go on where most of the repository would be deleted.")
    ] = False
    deletes_per_second: Annotated[
        float | None, Field(ge=0.1, le=1e6, description="Delete no faster, to spare the storage.")
    ] = None


class GcAccepted(Accepted):
    """A collection was started; the job's `result` will say what it freed, or would."""

    repository_id: str


class VerifyRepository(Request):
    """How deep to verify, and how much in this run; the next one goes on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"level": 2}]})

    level: Annotated[
        StrictInt,
        Field(
            description="0: all is there; 1: stored bytes; 2: what they decode to; 3: all maps;"
            " 4: all disks, read whole.",
            ge=0,
            le=4,
        ),
    ] = 2
    bytes_max: Annotated[StrictInt | None, Field(description="Read about so much.", ge=0)] = None
    seconds_max: Annotated[
        float | None, Field(description="Begin with no pack later than that.", ge=0, le=1e9)
    ] = None


class VerifyAccepted(Accepted):
    """A verification was started; the job's `result` will hold what it found."""

    repository_id: str


class ImportAccepted(Accepted):
    """An import was started; the job's `result` will say what it brought."""

    repository_id: str


class HubExportAccepted(Accepted):
    """An export was started; the job's `result` will say what was put."""

    repository_id: str


class CheckAccepted(Accepted):
    """A check was started; the job's `result` will hold what it found."""

    repository_id: str
