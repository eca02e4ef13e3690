"""A platform's own identity: noted at first contact, the same ever after, on each database."""

from collections.abc import Callable

import pytest

from sendense.core.errors import Conflict, Exists
from sendense.db.catalog import Catalog
from sendense.db.tables import SourceRow, VmRow
from sendense.hub.sources import queries
from tests.servers.fixtures import KINDS
from tests.unit.db import rows


@pytest.fixture(params=KINDS)
def catalog(request: pytest.FixtureRequest, open_catalog: Callable[[str], Catalog]) -> Catalog:
    return open_catalog(request.param)


def add(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add_all([rows.source("vc1"), rows.source("vc2")])
        session.flush()
        session.add(rows.vm(source_id="source-vc1", source_uuid="source-vc1"))


def settle(catalog: Catalog, name: str, uuid: str) -> None:
    with catalog.write() as session:
        queries.settle_identity(session, session.get_one(SourceRow, f"source-{name}"), uuid)


def test_the_first_contact_settles_who_a_platform_is(catalog: Catalog) -> None:
    add(catalog)
    settle(catalog, "vc1", "uuid-1")
    settle(catalog, "vc1", "uuid-1")
    settle(catalog, "vc2", "uuid-2")
    with catalog.read() as session:
        assert session.get_one(SourceRow, "source-vc1").uuid == "uuid-1"
        assert [vm.source_uuid for vm in session.query(VmRow)] == ["uuid-1"]


def test_the_same_platform_is_not_registered_twice(catalog: Catalog) -> None:
    add(catalog)
    settle(catalog, "vc1", "uuid-1")
    with pytest.raises(Exists) as caught:
        settle(catalog, "vc2", "uuid-1")
    assert caught.value.kind == "source-registered-twice"
    assert "vc1" in caught.value.hint
    with catalog.read() as session:
        assert session.get_one(SourceRow, "source-vc2").uuid == "source-vc2"


def test_another_platform_at_the_same_address_is_refused(catalog: Catalog) -> None:
    add(catalog)
    settle(catalog, "vc1", "uuid-1")
    with pytest.raises(Conflict) as caught:
        settle(catalog, "vc1", "uuid-9")
    assert caught.value.kind == "source-is-another"
    with catalog.read() as session:
        assert session.get_one(SourceRow, "source-vc1").uuid == "uuid-1"
