"""100,000 backups in the catalog: what the API lists of them comes within 50 ms.

`--long` runs it with 100,000 on each database; quick runs, beside many other tests, notice with
10,000 and twice the time when a list grows out of hand.

A loaded machine makes everything slower, and that is no news of the product. So the time in which
another process had the core is taken off (see benchmarks/catalog.py), the limit grows where a fixed
piece of work takes more CPU time than on an idle machine (caches and the other half of the core are
shared too), and the best of some rounds counts.
"""

from collections.abc import Callable

import pytest

from benchmarks import catalog as questions
from benchmarks import estate
from sendense.db import schema
from sendense.db.catalog import Catalog
from tests import slowness

ROUNDS_MAX = 4
REQUESTS = 20  # in one round: its 95th percentile is the second slowest
FEWER = 10_000


def _measure(
    catalog: Catalog, question: questions.Question, *, limit: float
) -> tuple[float, float]:
    """Return the 95th percentile of the best round and the limit that then held."""
    found = []
    for _ in range(ROUNDS_MAX):
        p95 = questions.measure(catalog, question, rounds=REQUESTS).p95
        found.append((p95, limit * slowness.factor()))
        if p95 <= found[-1][1]:
            break
    return min(found, key=lambda one: one[0] / one[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_lists_chains_and_pages_take_50_ms_at_most(
    kind: str,
    database_url: Callable[[str], str],
    long_run: bool,  # noqa: FBT001 - a fixture
) -> None:
    catalog = Catalog(database_url(kind))
    try:
        schema.migrate(catalog)
        known = estate.build(catalog, backups=estate.BACKUPS if long_run else FEWER)
        limit = questions.LIMIT_SECONDS * (1 if long_run else 2)
        with questions.as_a_hub_runs():
            measured = {
                one.name: _measure(catalog, one, limit=limit)
                for one in questions.list_questions(known)
            }
    finally:
        catalog.close()
    slow = {
        name: f"{p95 * 1e3:.0f} ms, the limit is {limit * 1e3:.0f} ms"
        for name, (p95, limit) in measured.items()
        if p95 > limit
    }
    assert not slow
