"""The number of backups in the catalog."""

from collections.abc import Iterator, Sequence

from benchmarks import catalog
from benchmarks.catalog import as_a_hub_runs
from benchmarks.growth.series import Curve, Quantity, Series

ASKED = {
    "backups: no filter": "list",
    "backups: two tags": "list by two tags",
    "chain": "chain of a disk",
}


def measure(amounts: Sequence[int], *, rounds: int) -> Iterator[Series]:
    """Yield the 95th percentile of lists and chains, by the rows in an SQLite catalog."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in ASKED}
    for amount in amounts:
        with catalog.built(amount) as (opened, known), as_a_hub_runs():
            for question in catalog.list_questions(known):
                if question.name in ASKED:
                    timing = catalog.measure(opened, question, rounds=rounds)
                    points[question.name].append((amount, timing.p95 * 1e3))
    yield Series(
        "catalog",
        "Lists of the API, SQLite, 95th percentile",
        "backups in the catalog",
        Quantity.COUNT,
        Quantity.MILLISECONDS,
        tuple(Curve(ASKED[name], tuple(found)) for name, found in points.items()),
    )
