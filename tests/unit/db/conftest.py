"""The catalog's promises, on each of the three databases."""

from collections.abc import Callable

import pytest

from sendense.db.catalog import Catalog
from tests.servers.fixtures import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of database."""
    return str(request.param)


@pytest.fixture
def catalog(kind: str, open_catalog: Callable[[str], Catalog]) -> Catalog:
    """An empty, migrated catalog."""
    return open_catalog(kind)
