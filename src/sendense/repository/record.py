"""Records: frozen dataclasses as canonical JSON, decoded strictly by their own type hints.

Understood are str, int, bool, datetime (UTC), bytes (hex), string enums, other records, tuples of
these, mappings of JSON values, and each of them or None. Anything else in the JSON, a missing or
an unknown field included, is Corrupt. A field may say by its metadata that it is not always there.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from sendense.core import clock
from sendense.repository import format

R = TypeVar("R")

# For `dataclasses.field(metadata=…)`; such fields have defaults.
ABSENT_WHERE_EMPTY = {"is_absent_where_empty": True}
NEVER_STORED = {"is_never_stored": True}


def dump(record: Any) -> bytes:
    """Return a record as canonical JSON."""
    return format.dump_json(to_json(record))


def load(kind: type[R], data: bytes, *, name: str) -> R:
    """Return the record that `dump` wrote, or raise Corrupt naming the object."""
    return from_json(kind, format.load_json(data, name=name), name=name)


def to_json(record: Any) -> dict[str, Any]:
    """Return a record as a JSON object."""
    kind: type = type(record)
    shape = _shape(kind)
    values = ((name, getattr(record, name)) for name in shape.hints)
    return {
        name: _dump_value(value) for name, value in values if value or name not in shape.optional
    }


def from_json(kind: type[R], value: Any, *, name: str) -> R:
    """Return the record that `to_json` gave, or raise Corrupt naming the object."""
    try:
        loaded: R = _load_value(kind, value)
    except (TypeError, ValueError) as error:
        raise format.corrupt(name, f"its record does not fit: {error}") from error
    return loaded


def _dump_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, datetime):
        return clock.format_utc(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_dump_value(item) for item in value]
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """The stored fields of a record with their types, and which of them may be absent."""

    hints: dict[str, Any]
    optional: frozenset[str]


@functools.cache
def _shape(kind: type) -> _Shape:
    fields = dataclasses.fields(kind)
    hints = typing.get_type_hints(kind)
    return _Shape(
        {one.name: hints[one.name] for one in fields if not one.metadata.keys() & NEVER_STORED},
        frozenset(one.name for one in fields if one.metadata.keys() & ABSENT_WHERE_EMPTY),
    )


def _load_value(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in {types.UnionType, typing.Union}:
        options = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return None if value is None else _load_value(options[0], value)
    if origin is tuple:
        return tuple(_load_value(typing.get_args(kind)[0], item) for item in _of(list, value))
    if origin is not None and issubclass(origin, Mapping):
        return _of(dict, value)
    if dataclasses.is_dataclass(kind):
        return _load_record(typing.cast("type", kind), _of(dict, value))
    return _load_plain(kind, value)


def _load_record(kind: type, value: dict[str, Any]) -> Any:
    shape = _shape(kind)
    amiss = value.keys() ^ shape.hints.keys() - (shape.optional - value.keys())
    # Absent is the one way to be empty, so that a record has one form only.
    amiss |= {key for key in shape.optional & value.keys() if not value[key]}
    if amiss:
        raise ValueError(f"{kind.__name__} with fields {sorted(amiss)} amiss")
    return kind(**{key: _load_value(shape.hints[key], one) for key, one in value.items()})


def _load_plain(kind: Any, value: Any) -> Any:
    if kind is datetime:
        return clock.parse_utc(_of(str, value))
    if kind is bytes:
        return bytes.fromhex(_of(str, value))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(_of(str, value))
    if kind is int and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"{value!r} is no count")
    return _of(kind, value)


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value
