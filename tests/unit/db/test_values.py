"""What is written comes back the same from every database, and compares and sorts alike."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from sendense.db import search
from sendense.db.base import NAME_LENGTH_MAX, Base
from sendense.db.catalog import Catalog
from sendense.db.tables import BackupRow, JobRow, RepositoryRow, SourceRow, VmRow, WorkerRow
from tests.servers.fixtures import KINDS
from tests.unit.db.rows import (
    UNIQUE,
    add_surroundings,
    backup,
    broken_rule,
    job,
    repository,
    source,
    vm,
)

FAR = "\U0001f4be"  # four bytes in UTF-8, two units in UTF-16
BIG = 2**63 - 1
# In the order of their code points, which no language sorts by.
NAMES = ["", " ", "A", "A ", "B", "a", "a\tb", "a ", "ab", "b", "ä", "é", "ﬀ", FAR]
DOCUMENT: dict[str, Any] = {
    "": "an empty key",
    "null": None,
    "true": True,
    "numbers": [0, -1, BIG, -(2**63), 1.5, 0.1, 1e-300, 1.7976931348623157e308],
    "text": f"'\"\\ %s :x {{}} \n\t ä é ﬀ {FAR} \u2028",
    "deep": [[{"a.b": {"c'd": [None]}}]],
    " blank ": " kept ",
}


# Values.


def test_json_comes_back_as_it_was_written(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add(job("job-1", result=DOCUMENT, steps=[DOCUMENT, None, 1]))
    with catalog.read() as session:
        row = session.get_one(JobRow, "job-1")
        assert row.result == DOCUMENT
        assert row.steps == [DOCUMENT, None, 1]
        assert row.progress == {}


def test_nothing_is_null_and_not_the_text_null(catalog: Catalog) -> None:
    add_surroundings(catalog)
    with catalog.write() as session:
        session.add(backup(error=None))
    with catalog.read() as session:
        found = session.scalars(select(BackupRow.id).where(BackupRow.error.is_(None))).all()
    assert found == ["backup-1"]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2))),
        datetime(2026, 3, 29, 1, 30, tzinfo=UTC),  # an hour that many local clocks leave out
        datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
def test_times_come_back_in_utc_with_microseconds(catalog: Catalog, moment: datetime) -> None:
    with catalog.write() as session:
        session.add(repository(measured_at=moment))
    with catalog.read() as session:
        found = session.get_one(RepositoryRow, "repo-1").measured_at
        assert found == moment
        assert found is not None
        assert found.tzinfo is UTC
        one = timedelta(microseconds=1)
        for other, earlier in ((moment - one, True), (moment, False)):
            query = select(RepositoryRow.id).where(RepositoryRow.measured_at > other)
            assert bool(session.scalars(query).all()) is earlier


def test_numbers_keep_all_their_digits(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add(repository(chunk_size=BIG, capacity_bytes=-BIG - 1, free_bytes=0))
        session.add(job("job-1", progress_percent=100 / 3))
        session.add(
            WorkerRow(id="w", host="h", pid=2**31, started_at=1767225600.123456, beat_at=-0.1)
        )
    with catalog.read() as session:
        row = session.get_one(RepositoryRow, "repo-1")
        assert (row.chunk_size, row.capacity_bytes, row.free_bytes) == (BIG, -BIG - 1, 0)
        assert session.get_one(JobRow, "job-1").progress_percent == 100 / 3
        worker = session.get_one(WorkerRow, "w")
        assert (worker.started_at, worker.beat_at, worker.pid) == (1767225600.123456, -0.1, 2**31)


def test_truth_and_emptiness_are_no_numbers_and_no_nulls(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add(repository(enabled=False, trouble=""))
    with catalog.read() as session:
        row = session.get_one(RepositoryRow, "repo-1")
        assert row.enabled is False
        assert row.trouble == ""
        for condition in (RepositoryRow.enabled.is_(False), RepositoryRow.trouble == ""):
            assert session.scalars(select(RepositoryRow.id).where(condition)).all() == ["repo-1"]
        nulls = select(RepositoryRow.id).where(RepositoryRow.trouble.is_(None))
        assert session.scalars(nulls).all() == []


# Texts.


def test_names_that_differ_in_anything_are_different_names(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add_all(source(name, id=f"s{n}", uuid=f"u{n}") for n, name in enumerate(NAMES))
    with catalog.read() as session:
        for name in NAMES:
            assert session.scalars(select(SourceRow.name).where(SourceRow.name == name)).all() == [
                name
            ]
    with pytest.raises(IntegrityError) as caught, catalog.write() as session:
        session.add(source("a ", id="again", uuid="again"))
    assert broken_rule(caught.value) == UNIQUE


def test_names_are_sorted_by_their_code_points(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add_all(
            source(name, id=f"s{n}", uuid=f"u{n}") for n, name in enumerate(reversed(NAMES))
        )
    with catalog.read() as session:
        assert session.scalars(select(SourceRow.name).order_by(SourceRow.name)).all() == NAMES
        after = select(SourceRow.name).where(SourceRow.name > "b").order_by(SourceRow.name)
        assert session.scalars(after).all() == NAMES[NAMES.index("b") + 1 :]


def test_the_longest_name_fits_in_any_alphabet(catalog: Catalog) -> None:
    name = FAR * NAME_LENGTH_MAX
    with catalog.write() as session:
        session.add(source(name, id="s", uuid="u"))
    with catalog.read() as session:
        assert session.scalar(select(SourceRow.id).where(SourceRow.name == name)) == "s"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("WEB", ["Web-Ä", "web-ä"]),
        ("-Ä", ["Web-Ä", "web-ä"]),
        ("a", ["100%", "Straße_1", "back\\slash"]),
        ("%", ["100%"]),
        ("_", ["Straße_1"]),
        ("/", ["100%"]),
        ("\\", ["back\\slash"]),
        ("ß", ["Straße_1"]),
        ("ΛΌΓ", ["λόγος"]),
        ("'", []),
        (FAR, []),
    ],
)
def test_a_search_knows_no_case_and_no_special_signs(
    catalog: Catalog, words: str, found: list[str]
) -> None:
    add_surroundings(catalog)
    names = {
        "Web-Ä": "/x",
        "web-ä": "",
        "100%": "/a",
        "Straße_1": "",
        "back\\slash": "",
        "λόγος": "",
    }
    if words == "/":
        names["Web-Ä"] = ""
    with catalog.write() as session:
        for number, (name, path) in enumerate(names.items()):
            session.add(vm(f"vm-x{number}", name=name, path=path or None))
    with catalog.read() as session:
        query = (
            select(VmRow.name)
            .where(
                search.contains(VmRow.name, words) | search.contains(VmRow.path, words),
                VmRow.id != "vm-1",
            )
            .order_by(VmRow.name)
        )
        assert session.scalars(query).all() == found


def test_tags_are_found_by_exactly_their_value(catalog: Catalog) -> None:
    add_surroundings(catalog)
    values = ["x", "X", "x ", "", "é", "e", "null", FAR, "1"]
    with catalog.write() as session:
        for number, value in enumerate(values):
            session.add(vm(f"b{number}", tags={"a.b/c-d": value, "other": "x"}))
        session.add(vm("without", tags={"other": "x"}))
    stored = search.value_of(VmRow.tags, "a.b/c-d")
    with catalog.read() as session:
        for number, value in enumerate(values):
            assert session.scalars(select(VmRow.id).where(stored == value)).all() == [f"b{number}"]
        having = select(VmRow.id).where(stored.is_not(None)).order_by(VmRow.id)
        assert session.scalars(having).all() == [f"b{number}" for number in range(len(values))]
        assert session.scalars(select(VmRow.id).where(stored.is_(None))).all() == [
            "vm-1",
            "without",
        ]


@pytest.mark.parametrize("kind", KINDS[1:])  # SQLite does so unless told otherwise
def test_every_text_on_a_server_is_compared_by_its_code_points(catalog: Catalog) -> None:
    """So is every column, not only those that other tests happen to look at."""
    if catalog.engine.dialect.name == "postgresql":
        query = (
            "SELECT DISTINCT collation_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND data_type = 'character varying'"
            " AND table_name <> 'alembic_version'"
        )
        wanted = {"C"}
    else:
        query = (
            "SELECT DISTINCT collation_name FROM information_schema.columns"
            " WHERE table_schema = DATABASE() AND data_type = 'varchar'"
        )
        wanted = {"utf8mb4_nopad_bin"}
    with catalog.read() as session:
        assert set(session.scalars(text(query))) == wanted


def test_every_table_of_the_models_is_there(catalog: Catalog) -> None:
    names = set(inspect(catalog.engine).get_table_names())
    assert names == {*Base.metadata.tables, "alembic_version"}
