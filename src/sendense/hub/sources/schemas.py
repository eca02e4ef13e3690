"""Sources as the API shows them."""

from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    StrictStr,
    StringConstraints,
    computed_field,
    model_validator,
)
from pydantic.config import JsonDict

from sendense.hub.model import Accepted, Answer, Moment, Name, Request, explained

_EXAMPLE: JsonDict = {
    "name": "lab",
    "type": "image",
    "config": {"vms": [{"name": "pgtest1", "disks": ["/srv/a.raw", "/srv/b.raw"]}]},
}

SourceType = Annotated[
    StrictStr,
    StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$"),
    explained("must be a connector's name, such as image or qemu"),
    Field(description="A connector's name: `image` or `qemu`.", examples=["image"]),
]
Config = Annotated[
    dict[str, Any], Field(description="As the type's connector wants it; see the examples.")
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


class TestSource(Request):
    """A source to try before it is registered."""

    __test__ = False  # no test of pytest's
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    type: SourceType
    config: Config
    name: Name | None = None


class ChangeSource(Request):
    """What a user may set of a source; its type stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "lab-2"}]})

    name: Name | None = None
    config: Config | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.name is None and self.config is None:
            raise ValueError("give name or config")
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
    vm_count: int
    discovered_at: Moment | None
    trouble: Annotated[str | None, Field(description="What the last try found wrong, or null.")]
    created_at: Moment
    updated_at: Moment


class SourceList(Answer):
    """A page of sources in the order of their names."""

    sources: list[Source]
    total: int


class SourceTested(Answer):
    """The source answered."""

    reachable: bool
    detail: Annotated[str, Field(description="One line on what answered.")]


class Discover(Request):
    """Nothing needs to be said: everything is discovered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class DiscoverAccepted(Accepted):
    """A discovery was started; its job's `result` will hold what it found."""

    source_id: str
