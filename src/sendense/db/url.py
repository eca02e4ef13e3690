"""Which databases can hold the catalog, and how their URLs are read."""

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from sendense.core.errors import Invalid

# What users may write, and the driver that is meant. Locked with the product, so always there.
_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mariadb+pymysql",  # the dialect of this name refuses a server that is not MariaDB
    "mariadb": "mariadb+pymysql",
}
_EXAMPLES = (
    "write sqlite:////folder/file, postgresql+psycopg://user:password@host/database or"
    " mysql+pymysql://user:password@host/database"
)


def parse(text: str) -> URL:
    """Return the URL of a catalog with its driver named.

    Raises Invalid, kind `database-url`, for what is no URL, names another driver or no database,
    and kind `database-unsupported` for another kind of database. No message holds the URL: there
    may be a password in it.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise Invalid(
            "the database's URL cannot be read", kind="database-url", hint=_EXAMPLES
        ) from error
    backend, _, driver = url.drivername.partition("+")
    wanted = _DRIVERS.get(backend)
    if wanted is None:
        raise Invalid(
            f"the catalog cannot be kept in {backend}",
            kind="database-unsupported",
            hint=f"SQLite, PostgreSQL and MariaDB can keep it: {_EXAMPLES}",
        )
    if driver and driver != wanted.partition("+")[2]:
        raise Invalid(
            f"the catalog does not use the driver {driver}", kind="database-url", hint=_EXAMPLES
        )
    if backend != "sqlite" and not url.database:
        raise Invalid("the database's URL names no database", kind="database-url", hint=_EXAMPLES)
    return url.set(drivername=wanted)
