"""The hub's name on platforms: given once, the same for all that use the catalog."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sendense.core.ids import SystemIds
from sendense.db.catalog import Catalog
from sendense.durable import identity
from tests.servers.fixtures import KINDS

ASKING_AT_ONCE = 8


@pytest.mark.parametrize("kind", KINDS)
def test_of_many_that_ask_for_the_hub_s_name_all_learn_the_same(
    kind: str, open_catalog: Callable[[str], Catalog]
) -> None:
    catalog = open_catalog(kind)
    with ThreadPoolExecutor(ASKING_AT_ONCE) as pool:
        names = set(pool.map(lambda _: identity.find_hub(catalog, SystemIds()), range(20)))
    assert len(names) == 1
    [name] = names
    assert name == identity.find_hub(catalog, SystemIds())
    assert name.startswith("hub-")
    assert len(name) == len("hub-") + 16, "a snapshot's name has room for it"
