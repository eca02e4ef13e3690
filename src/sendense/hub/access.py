"""Who calls, and what they may. Until accounts exist: anyone who reaches the loopback address."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a request."""

    name: str


LOCAL = Principal("local")


def identify() -> Principal:
    """Return the caller.

    The server runs only with `--no-auth` so far, which binds to loopback, and api/gate.py turns
    away what a web page sends; whoever gets here is a local user.
    """
    return LOCAL


Caller = Annotated[Principal, Depends(identify)]
