"""What every table shares: naming of constraints, and types that mean the same everywhere.

The tables are the same on SQLite, PostgreSQL and MariaDB: strings have lengths and compare by their
code points, constraints have names, times are UTC, there are no partial indexes.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Float, Integer, MetaData, String
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

ID_LENGTH_MAX = 100  # the longest id is a backup's: slug of 40, time, random characters
NAME_LENGTH_MAX = 255  # vSphere allows 80, file systems 255
TEXT_LENGTH_MAX = 4096  # messages for people; longer ones are cut where they are made
WORD_LENGTH_MAX = 32  # states, kinds, types

# SQLite counts rows up only in an INTEGER, which holds 64 bits there anyway.
BIG_INT = BigInteger().with_variant(Integer(), "sqlite")
# MariaDB's FLOAT has seven digits.
FLOAT = Float().with_variant(mysql.DOUBLE(asdecimal=False), "mysql", "mariadb")
# None is NULL, not the JSON text `null`.
JSON_VALUE = JSON(none_as_null=True)

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def text(length_max: int) -> String:
    """Return the type of a text of so many characters.

    It compares and sorts by code points on every database, trailing blanks included, whatever the
    server's own collation is: SQLite does so anyway, PostgreSQL is told here, and MariaDB by the
    database's default, which the migrations set.
    """
    return String(length_max).with_variant(String(length_max, collation="C"), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC with microseconds, on every database.

    Takes only aware datetimes and gives aware ones back; stored without zone, as UTC.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Keep microseconds on MariaDB, whose DATETIME drops them."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store as UTC."""
        del dialect
        if value is None:
            return None
        assert value.tzinfo is not None, f"{value} has no time zone"
        return value.astimezone(UTC).replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Give back as UTC; SQLite's texts in one step, since a chain has thousands of moments."""
        del coltype
        return _read_text if dialect.name == "sqlite" else _read_moment


def _read_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value + "+00:00")


def _read_moment(value: datetime | None) -> datetime | None:
    return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """The base of all tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        datetime: UtcDateTime(),
        dict[str, Any]: JSON_VALUE,
        list[Any]: JSON_VALUE,
        dict[str, str]: JSON_VALUE,
        int: BIG_INT,
        str: text(NAME_LENGTH_MAX),
    }
