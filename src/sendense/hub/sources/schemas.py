"""Sources as the API shows them."""

from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    StrictStr,
    StringConstraints,
    computed_field,
    model_validator,
)
from pydantic.config import JsonDict

from sendense.hub.model import (
    Accepted,
    Answer,
    Moment,
    Name,
    Request,
    RequiredLabels,
    explained,
)

_EXAMPLE: JsonDict = {
    "name": "lab",
    "type": "image",
    "config": {"vms": [{"name": "pgtest1", "disks": ["/srv/a.raw", "/srv/b.raw"]}]},
}

CREDENTIAL_LENGTH_MAX = 1024  # vCenter takes fewer; more is no password


SourceType = Annotated[
    StrictStr,
    StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$"),
    explained("must be a connector's name, such as image or qemu"),
    Field(description="A connector's name: `image` or `qemu`.", examples=["image"]),
]
Config = Annotated[
    dict[str, Any], Field(description="As the type's connector wants it; see the examples.")
]


class Credentials(Request):
    """What a platform is logged in with. Kept sealed, and never part of an answer."""

    username: Annotated[
        StrictStr,
        StringConstraints(min_length=1, max_length=CREDENTIAL_LENGTH_MAX),
        Field(examples=["sendense@vsphere.local"]),
    ]
    password: Annotated[
        SecretStr,
        Field(
            min_length=1,
            max_length=CREDENTIAL_LENGTH_MAX,
            json_schema_extra={"writeOnly": True, "examples": ["…"]},
        ),
    ]

    def reveal(self) -> dict[str, str]:
        """Return both as a connector wants them; for sealing and logging in only."""
        return {"username": self.username, "password": self.password.get_secret_value()}


MaybeCredentials = Annotated[
    Credentials | None,
    Field(description="For types that log in. Sealed; no answer holds the password."),
]


class CreateSource(Request):
    """A source to register."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                _EXAMPLE,
                {
                    "name": "kvm",
                    "type": "qemu",
                    "config": {"vms": [{"name": "web1", "qmp": "/run/vms/web1.qmp"}]},
                },
            ]
        }
    )

    name: Name
    type: SourceType
    config: Config
    credentials: MaybeCredentials = None
    required_labels: RequiredLabels = Field(default_factory=dict)


class TestSource(Request):
    """A source to try before it is registered."""

    __test__ = False  # no test of pytest's
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    type: SourceType
    config: Config
    credentials: MaybeCredentials = None
    name: Name | None = None


class ChangeSource(Request):
    """What a user may set of a source; its type stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "lab-2"}]})

    name: Name | None = None
    config: Config | None = None
    credentials: MaybeCredentials = None
    required_labels: RequiredLabels | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        given = (self.name, self.config, self.credentials, self.required_labels)
        if all(one is None for one in given):
            raise ValueError("give name, config, credentials or required_labels")
        return self


class Source(Answer):
    """A source."""

    id: str

    @computed_field(description="The same as id, as other answers call it.")  # type: ignore[prop-decorator] # pydantic documents it so
    @property
    def source_id(self) -> str:
        """The id under the name that other answers give it."""
        return self.id

    name: str
    type: str
    config: dict[str, Any]
    has_credentials: bool
    username: Annotated[
        str | None, Field(description="What its platform is logged in with, or null.")
    ]
    uuid: Annotated[
        str,
        Field(description="The platform's own identity, known since first contact; else the id."),
    ]
    warnings: Annotated[list[str], Field(description="What is not as it should be in production.")]
    required_labels: dict[str, str]
    vm_count: int
    discovered_at: Moment | None
    trouble: Annotated[str | None, Field(description="What the last try found wrong, or null.")]
    created_at: Moment
    updated_at: Moment


class SourceList(Answer):
    """A page of sources in the order of their names."""

    sources: list[Source]
    total: int


class Certificate(Answer):
    """The certificate that a platform shows, and what is wrong with it, if anything."""

    sha256: Annotated[
        str,
        Field(
            description="Of the whole certificate; compare it with what the host's console says."
        ),
    ]
    pem: Annotated[str, Field(description="As `certificate_pem` of a configuration trusts it.")]
    subject: str
    issuer: str
    not_before: Moment
    not_after: Moment
    trusted: Annotated[
        bool, Field(description="Pinned, or else signed by whom this machine trusts, for the host.")
    ]
    problems: list[str]


class SourceTested(Answer):
    """The source answered."""

    reachable: bool
    detail: Annotated[str, Field(description="One line on what answered.")]
    logged_in: Annotated[
        bool,
        Field(
            description="False where the type logs in to nothing, no credentials were given, or"
            " the certificate is not trusted: none are sent then."
        ),
    ] = False
    certificate: Annotated[
        Certificate | None, Field(description="For types that show one, before any login.")
    ] = None
    uuid: Annotated[
        str | None, Field(description="The platform's own identity, once logged in.")
    ] = None
    registered_as: Annotated[
        str | None, Field(description="The id of the source that is this platform already.")
    ] = None
    warnings: list[str] = Field(default_factory=list)


class Discover(Request):
    """Nothing needs to be said: everything is discovered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class DiscoverAccepted(Accepted):
    """A discovery was started; its job's `result` will hold what it found."""

    source_id: str
