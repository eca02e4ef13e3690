"""Query parameters that are given more often than they count."""

from collections import Counter

from fastapi import Request
from fastapi.exceptions import RequestValidationError

LISTS = frozenset({"tag"})  # the parameters of which every value counts


def refuse(request: Request) -> None:
    """Raise RequestValidationError where a parameter is repeated of which one value would count.

    Otherwise the last one would, and `?limit=10&limit=1000` would mean what nobody said.
    """
    names = Counter(name for name, _ in request.query_params.multi_items())
    repeated = [name for name, count in names.items() if count > 1 and name not in LISTS]
    if repeated:
        raise RequestValidationError(
            [{"type": "repeated", "loc": ("query", name), "ctx": {}} for name in repeated]
        )
