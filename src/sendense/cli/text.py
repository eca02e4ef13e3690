"""Values as people read them: sizes, times, rates; and names that cannot drive a terminal."""

import json
import math
import unicodedata
from collections.abc import Hashable, Iterable
from datetime import UTC, datetime

from sendense.core import clock, units

MISSING = "-"
LINES_OF_A_KIND_MAX = 3  # enough to recognise what is wrong; `--json` holds all
_SECONDS_EXACT = 9.95  # below that the tenths tell something
_SECONDS_PER_MINUTE = 60
_SECONDS_PER_HOUR = 3600
_SECONDS_PER_DAY = 86400

# Control and format characters (escape sequences, C1, bidirectional overrides, joiners that hide
# text), lone surrogates, private use, line and paragraph separators: all can make a terminal show
# something else than the text.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Needed inside words of several scripts (Persian, Hindi) and in emoji; they cannot move the cursor.
_JOINERS = frozenset("\u200c\u200d")


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE_CATEGORIES and character not in _JOINERS


def escape(value: object) -> str:
    r"""Return text that is safe to show: every character that could act is written as `\x1b`.

    Letters of all scripts stay as they are; the result is one line.
    """
    text = value if isinstance(value, str) else str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape", "backslashreplace").decode("ascii")
        if _is_unsafe(character)
        else character
        for character in text
    )


def escape_json(text: str) -> str:
    """Return JSON with the same meaning whose strings cannot drive a terminal.

    Characters below U+0020 can stand in valid JSON only as white space between the values.
    """
    return "".join(
        json.dumps(character)[1:-1]
        if character not in "\n\r\t " and _is_unsafe(character)
        else character
        for character in text
    )


def size(value: object) -> str:
    """Return bytes with a binary unit, `-` where unknown."""
    return units.format_size(value) if isinstance(value, int) else MISSING


def rate(bytes_per_second: object) -> str:
    """Return a rate with a binary unit, `-` where unknown."""
    if not isinstance(bytes_per_second, int | float) or bytes_per_second <= 0:
        return MISSING
    return f"{units.format_size(int(bytes_per_second))}/s"


def percent(value: object) -> str:
    """Return a percentage without decimals; 100 only where it is complete."""
    if not isinstance(value, int | float):
        return MISSING
    return f"{int(value)} %"


def moment(value: object) -> str:
    """Return an ISO 8601 time of the API as `2026-01-01 00:00:00` in UTC, else `-`."""
    if not isinstance(value, str) or not value:
        return MISSING
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return escape(value)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return f"{parsed.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def duration(seconds: float | None) -> str:
    """Return a length of time in its two largest units: `1 h 02 min`, `45 s`."""
    if seconds is None or seconds < 0:
        return MISSING
    if seconds < _SECONDS_EXACT:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _SECONDS_PER_MINUTE:
        return f"{whole} s"
    if whole < _SECONDS_PER_HOUR:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < _SECONDS_PER_DAY:
        return f"{whole // _SECONDS_PER_HOUR} h {whole % _SECONDS_PER_HOUR // 60:02d} min"
    return f"{whole // _SECONDS_PER_DAY} d {whole % _SECONDS_PER_DAY // _SECONDS_PER_HOUR:02d} h"


def remaining(seconds: float) -> str:
    """Return an estimate of the time left, in whole seconds: more would be pretence."""
    whole = math.ceil(seconds)
    return f"{whole} s left" if whole < _SECONDS_PER_MINUTE else f"{duration(whole)} left"


def between(start: object, end: object) -> str:
    """Return how long something took from one API time to another, `-` where one is missing."""
    if not isinstance(start, str) or not isinstance(end, str):
        return MISSING
    try:
        return duration((clock.parse_utc(end) - clock.parse_utc(start)).total_seconds())
    except ValueError:
        return MISSING


def count(number: object, noun: str) -> str:
    """Return `1 backup`, `2 backups`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def yes_no(value: object) -> str:
    """Return a truth for people."""
    if value is None:
        return MISSING
    return "yes" if value else "no"


def listing(values: object) -> str:
    """Return tags `a=1, b=2` or a list `a, b`, escaped; `-` for nothing."""
    if isinstance(values, dict):
        return ", ".join(f"{escape(key)}={escape(item)}" for key, item in values.items()) or MISSING
    if isinstance(values, list | tuple):
        return ", ".join(escape(item) for item in values) or MISSING
    return escape(values) if values not in {None, ""} else MISSING


def shorten(lines: Iterable[tuple[Hashable, str]], *, most: int = LINES_OF_A_KIND_MAX) -> list[str]:
    """Return the lines, but of each group no more than `most` and a count of the rest.

    One bad pack spoils thousands of chunks of the same disk: a person needs to see that, once.
    """
    counts: dict[Hashable, int] = {}
    shown: list[tuple[Hashable, str]] = []
    for group, line in lines:
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= most:
            shown.append((group, line))
    result = []
    for position, (group, line) in enumerate(shown):
        result.append(line)
        is_last = all(other != group for other, _ in shown[position + 1 :])
        if is_last and counts[group] > most:
            result.append(f"… and {counts[group] - most} more of this kind")
    return result
