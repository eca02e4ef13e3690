"""What the shapes of all requests and answers share."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictStr,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from sendense.core import clock
from sendense.durable import placement

NAME_LENGTH_MAX = 255  # of the catalog's columns; vSphere allows 80 characters
PATH_LENGTH_MAX = 4095  # Linux: PATH_MAX less its NUL
ID_LENGTH_MAX = 100
TAGS_MAX = 64  # enough for any inventory; a list of 1000 backups stays below 10 MB
TAG_VALUE_LENGTH_MAX = 255
PAGE_LENGTH_DEFAULT = 100
PAGE_LENGTH_MAX = 1000
OFFSET_MAX = 1_000_000_000  # beyond any catalog, within every database's integers


class Request(BaseModel):
    """A request's body: fields that we do not know are refused, so that a typo is no surprise."""

    model_config = ConfigDict(extra="forbid", str_max_length=1024 * 1024)


class Answer(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


def _refuse_controls(text: str) -> str:
    """Refuse what makes a name unreadable: control and format characters, blanks at its ends."""
    if text != text.strip():
        raise ValueError("must not begin or end with white space")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        raise ValueError("must not hold control characters")
    return text


def explained(reason: str) -> WrapValidator:
    """Return what gives one reason for whatever a field's own rules refuse.

    Patterns, and all that a union of types has tried, tell a person nothing.
    """

    def check(value: Any, check_rules: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check_rules(value)
        except ValidationError:
            raise ValueError(reason) from None

    return WrapValidator(check)


Name = Annotated[
    StrictStr,
    StringConstraints(min_length=1, max_length=NAME_LENGTH_MAX),
    AfterValidator(_refuse_controls),
]
Id = Annotated[StrictStr, StringConstraints(min_length=1, max_length=ID_LENGTH_MAX)]
TagKey = Annotated[
    StrictStr,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"),
    explained(
        "is no key of a tag: up to 63 of the letters a-z and A-Z, digits and . _ / -, "
        "beginning with a letter or digit"
    ),
]
TagValue = Annotated[StrictStr, StringConstraints(max_length=TAG_VALUE_LENGTH_MAX)]
Tags = Annotated[dict[TagKey, TagValue], Field(max_length=TAGS_MAX)]
LabelKey = Annotated[
    StrictStr,
    StringConstraints(pattern=f"^{placement.KEY_PATTERN}$"),
    explained("is no key of a label: up to 63 of a-z, 0-9 and, inside, . _ / -"),
]
LabelValue = Annotated[
    StrictStr,
    StringConstraints(pattern=f"^{placement.VALUE_PATTERN}$"),
    explained("is no value of a label: up to 253 letters, digits and, inside, . _ -"),
]
RequiredLabels = Annotated[
    dict[LabelKey, LabelValue],
    Field(
        max_length=placement.LABELS_MAX,
        description="Labels that a worker must have to reach it; `host` names a machine.",
        examples=[{"host": "nas1"}],
    ),
]
DiskNumber = Annotated[int, Field(strict=True, ge=0, le=9999)]
DiskName = Annotated[StrictStr, StringConstraints(pattern=r"^disk-[0-9]{1,9}$")]
# The disk's index, or its name: both are shown wherever a disk is.
DiskChoice = Annotated[
    DiskNumber | DiskName,
    explained("must be the index of a disk (0, 1, 2 …) or its name, such as disk-2000"),
]
Moment = Annotated[
    datetime, PlainSerializer(clock.format_utc, return_type=str, when_used="unless-none")
]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_asked(value: Any) -> Any:
    """Read `03:04:05 02:00` as what a client meant: in an address a bare plus is a blank.

    A number is no moment: pydantic would take it for seconds, or milliseconds, since 1970.
    """
    if isinstance(value, str):
        if _is_number(value):
            raise PydanticCustomError("datetime_parsing", "must be a time in ISO 8601")
        return re.sub(r"(T[0-9:.]+) (\d\d:?\d\d)\Z", r"\1+\2", value)
    return value


def _in_utc(moment: datetime) -> datetime:
    """Return a moment from a request in UTC; without a zone it is meant so."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999") from None


AskedMoment = Annotated[datetime, BeforeValidator(_read_asked), AfterValidator(_in_utc)]
Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=NAME_LENGTH_MAX),
    AfterValidator(_refuse_controls),
]
TagFilter = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}([=:][^\x00-\x1f]{0,255})?$",
    ),
    explained("must be `key`, `key=value` or `key:value`, with a tag's key"),
]
TagFilters = Annotated[
    list[TagFilter],
    Field(
        max_length=TAGS_MAX,
        description="`key` for whatever has the tag, `key=value` or `key:value` for those with "
        "this value. Repeat it to ask for several tags at once.",
        examples=[["test=vm_disks_integration"]],
    ),
]


def split_tag(wanted: str) -> tuple[str, str | None]:
    """Return the key of a tag filter and the value, or None where any will do."""
    # A key holds neither of both, a value may.
    found = re.match(r"([^=:]+)(?:[=:](.*))?\Z", wanted, re.DOTALL)
    assert found is not None, "checked by TagFilter"
    return found[1], found[2]


class Page(Request):
    """Which part of a list to answer."""

    limit: Annotated[int, Field(ge=1, le=PAGE_LENGTH_MAX)] = PAGE_LENGTH_DEFAULT
    offset: Annotated[int, Field(ge=0, le=OFFSET_MAX)] = 0


class Failure(Answer):
    """Why something failed, for people and for programs."""

    kind: str
    message: str
    hint: str = ""


class Accepted(Answer):
    """Work was started."""

    job_id: str
    status: str = "pending"


def failure_of(error: Mapping[str, Any] | None) -> Failure | None:
    """Return the failure as the catalog keeps it."""
    return None if error is None else Failure.model_validate(error)
