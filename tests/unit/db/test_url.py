"""Which URLs can be a catalog's."""

import pytest

from sendense.core.errors import Invalid
from sendense.db import url as urls


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("sqlite:////folder/file", "sqlite+pysqlite"),
        ("postgresql://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@h:5432/d?sslmode=require", "postgresql+psycopg"),
        ("mysql://u:p@h/d", "mariadb+pymysql"),
        ("mysql+pymysql://u:p@h/d?charset=utf8mb4", "mariadb+pymysql"),
        ("mariadb+pymysql://u:p@h/d", "mariadb+pymysql"),
    ],
)
def test_three_databases_are_known_and_each_has_one_driver(text: str, driver: str) -> None:
    assert urls.parse(text).drivername == driver


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "database-url"),
        ("a file", "database-url"),
        ("postgresql://u:secret@h:port/d", "database-url"),
        ("postgresql+asyncpg://u:secret@h/d", "database-url"),
        ("postgresql+psycopg2://u:secret@h/d", "database-url"),
        ("sqlite+aiosqlite:////secret", "database-url"),
        ("postgresql+psycopg://u:secret@h", "database-url"),
        ("mysql+pymysql://u:secret@h/", "database-url"),
        ("oracle://u:secret@h/d", "database-unsupported"),
        ("postgres://u:secret@h/d", "database-unsupported"),
    ],
)
def test_other_urls_are_refused_without_their_password(text: str, kind: str) -> None:
    with pytest.raises(Invalid) as caught:
        urls.parse(text)
    assert caught.value.kind == kind
    assert "postgresql+psycopg://user:password@host/database" in caught.value.hint
    assert "secret" not in f"{caught.value!r} {caught.value.hint} {caught.value.fields}"
