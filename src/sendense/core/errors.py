"""The tree of errors, grouped by what the caller should do.

    SendenseError
    ├── Invalid        never succeeds; mend the input
    ├── NotFound       no such thing
    ├── Conflict       wait, or change the state that is in the way
    │   └── Exists     the name is taken
    ├── Denied         not allowed to this caller, or outside the allowed places
    ├── Unavailable    the world may answer if asked again; a step retries
    │   └── NoSpace    the storage is full
    ├── Corrupt        stored data is not what we wrote: stop, alarm, never retry
    ├── ProtocolError  the peer broke the protocol: close the connection
    └── Cancelled      somebody asked for the work to stop

Messages are lower case, without a full stop, and name the object and the expectation. A hint, what
a person can do about it, is a field of its own. No secret belongs in a message or in a field.
The API maps `kind` to an HTTP status and a problem type, the CLI maps the class to an exit code.
"""

from typing import ClassVar


class SendenseError(Exception):
    """The root of all errors that the product raises about the world.

    Attributes:
        message: what is wrong, in one lower-case sentence without a full stop.
        hint: what a person can do about it, or "".
        kind: a stable, hyphenated word for this failure, e.g. `vm-unknown`; the API's problem type.
        fields: facts for programs: ids, sizes, paths. JSON-serialisable.
    """

    default_kind: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, hint: str = "", kind: str | None = None, **fields: object
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kind = kind or self.default_kind
        self.fields = fields


class Invalid(SendenseError):
    """Never succeeds; mend the input."""

    default_kind = "invalid"


class NotFound(SendenseError):
    """No such thing."""

    default_kind = "not-found"


class Conflict(SendenseError):
    """Something else is in the way: wait for it or change it."""

    default_kind = "conflict"


class Exists(Conflict):
    """The name is taken; nothing was replaced."""

    default_kind = "exists"


class Denied(SendenseError):
    """Not allowed."""

    default_kind = "denied"


class Unavailable(SendenseError):
    """The world did not answer; it may if asked again."""

    default_kind = "unavailable"


class NoSpace(Unavailable):
    """The storage is full; nothing was committed."""

    default_kind = "no-space"


class Corrupt(SendenseError):
    """Stored data is not what we wrote: stop, alarm, never retry."""

    default_kind = "corrupt"


class ProtocolError(SendenseError):
    """The peer broke the protocol; the connection is of no further use."""

    default_kind = "protocol-error"


class Cancelled(SendenseError):
    """Somebody asked for the work to stop."""

    default_kind = "cancelled"
