"""Wrong fields of a request in words: which one, and what it must be instead."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sendense.hub.restores.schemas import TargetType

REASON_LENGTH_MAX = 500  # a refused value is repeated in some reasons; an answer stays readable
BODY = "body"  # the name for what is wrong with a body as a whole
_PLACES = frozenset({BODY, "query", "path", "header"})
_KEY = "[key]"  # how pydantic marks the key of a mapping

# By pydantic's type of error, with the limits that it names; others say it in its own words.
_REASONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "extra_forbidden": lambda _: "is not a known field",
    "missing": lambda _: "is missing",
    "repeated": lambda _: "must be given once",
    "value_error": lambda limits: str(limits["error"]),
    "string_type": lambda _: "must be text",
    "string_unicode": lambda _: "must be valid Unicode",
    "string_too_short": lambda limits: _at_least(limits["min_length"], "character"),
    "string_too_long": lambda limits: _at_most(limits["max_length"], "character"),
    "too_short": lambda limits: _at_least(limits["min_length"], "entry"),
    "too_long": lambda limits: _at_most(limits["max_length"], "entry"),
    "int_type": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "is too large",
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "dict_type": lambda _: "must be a JSON object",
    "model_attributes_type": lambda _: "must be a JSON object",
    "model_type": lambda _: "must be a JSON object",
    "list_type": lambda _: "must be a JSON array",
    "enum": lambda limits: f"must be {limits['expected']}",
    "union_tag_invalid": lambda limits: f"must be one of {limits['expected_tags']}",
    "union_tag_not_found": lambda _: "is missing",
    "greater_than": lambda limits: f"must be greater than {limits['gt']}",
    "greater_than_equal": lambda limits: f"must be at least {limits['ge']}",
    "less_than_equal": lambda limits: f"must be at most {limits['le']}",
    "datetime_from_date_parsing": lambda _: _MOMENT,
    "datetime_parsing": lambda _: _MOMENT,
    "datetime_type": lambda _: _MOMENT,
}
# Fields whose `type` chooses what else they hold.
_MEMBERS = {"target": frozenset(TargetType)}
_MOMENT = "must be a time in ISO 8601, such as 2026-01-02T03:04:05Z"
_PLURALS = {"entry": "entries", "character": "characters"}


def describe(errors: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return each wrong field once, as `{"field", "reason"}`, in the order of its first error."""
    reasons: dict[str, list[str]] = {}
    for found in errors:
        field, reason = _describe(found)
        reasons.setdefault(field, []).append(reason)
    return [
        {"field": field, "reason": "; or ".join(dict.fromkeys(found))[:REASON_LENGTH_MAX]}
        for field, found in reasons.items()
    ]


def _describe(found: Mapping[str, Any]) -> tuple[str, str]:
    place = [str(part) for part in found["loc"]]
    if place and place[0] in _PLACES:
        # Of a parameter that may be repeated nobody counts which one it was.
        place = place[1:] if place[0] == BODY else place[1:2]
    if len(place) > 1 and place[1] in _MEMBERS.get(place[0], frozenset()):
        del place[1]  # pydantic's word for what the field's `type` chose
    if found["type"].startswith("union_tag"):
        place.append("type")
    say = _REASONS.get(found["type"])
    reason = str(found["msg"]) if say is None else say(found.get("ctx", {}))
    if place and place[-1] == _KEY:
        # The mapping is the field; its key is a value that a client has chosen.
        reason = f"{place[-2][:100]!r} {reason}"
        place = place[:-2]
    return ".".join(place) or BODY, reason[:REASON_LENGTH_MAX]


def _at_least(count: int, what: str) -> str:
    return f"must hold at least {count} {what if count == 1 else _PLURALS[what]}"


def _at_most(count: int, what: str) -> str:
    return f"must hold at most {count} {what if count == 1 else _PLURALS[what]}"
