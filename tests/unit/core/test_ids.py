import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from sendense.core import ids


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pgtest1", "pgtest1"),
        ("Web Server/01", "web-server-01"),
        ("  ../../etc/passwd ", "etc-passwd"),
        ("Müller & Söhne", "muller-sohne"),
        ("базаданных", "vm"),
        ("", "vm"),
        ("---", "vm"),
    ],
)
def test_a_slug_keeps_only_plain_characters(name: str, expected: str) -> None:
    assert ids.slug(name) == expected


def test_a_slug_is_cut_without_a_trailing_hyphen() -> None:
    name = "a" * (ids.SLUG_LENGTH_MAX - 1) + " tail"
    assert ids.slug(name) == "a" * (ids.SLUG_LENGTH_MAX - 1)


def test_a_backup_id_reads_as_vm_and_time_in_utc() -> None:
    at = datetime(2026, 2, 3, 6, 5, 6, tzinfo=timezone(timedelta(hours=2)))
    made = ids.backup_id("PG test", at=at, source=ids.SeededIds(1))
    assert re.fullmatch(r"backup-pg-test-20260203t040506z-[a-z0-9]{4}", made)


def test_a_new_id_starts_with_its_noun() -> None:
    assert re.fullmatch(r"job-[a-z0-9]{16}", ids.new_id("job", ids.SystemIds()))


@pytest.mark.parametrize("source", [ids.SystemIds(), ids.SeededIds(7)])
def test_sources_of_ids_give_what_was_asked_for(source: ids.IdSource) -> None:
    assert re.fullmatch(r"[a-z0-9]{12}", source.token(12))
    assert len(source.random_bytes(16)) == 16
    assert source.token(16) != source.token(16)
    assert source.random_bytes(16) != source.random_bytes(16)


def test_the_same_seed_gives_the_same_ids() -> None:
    one, other = ids.SeededIds(3), ids.SeededIds(3)
    assert [one.token(8), one.random_bytes(4)] == [other.token(8), other.random_bytes(4)]


def test_the_time_of_a_backup_id_keeps_no_zone_but_utc() -> None:
    at = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert "20261231t235959z" in ids.backup_id("x", at=at, source=ids.SeededIds(0))
