"""Is it one engine, and who are we?

Hub and workers must use the same engine, and may be told different places. The engine's database
holds an identity of its own; the hub writes into the catalog which one it uses. A worker whose
catalog is on a server, but whose engine is a file of its own machine, would get no jobs, and would
take those of others for lost.

The catalog also holds a name of its hub's own, for what it leaves on platforms: snapshots.
"""

import logging
import uuid

import sqlalchemy as sa

from sendense.core.errors import Conflict
from sendense.core.ids import IdSource, new_id
from sendense.db.catalog import Catalog
from sendense.db.tables.hub import HubRow
from sendense.db.tables.workers import JobEngineRow

_log = logging.getLogger(__name__)

BUSY_SECONDS_MAX = 30.0  # as the engine itself waits for SQLite's write lock
_SCHEMA = "dbos"  # DBOS's own schema on PostgreSQL, which may be shared with the catalog
ONLY = 1  # the row of the hub's name
_LOCK = 0x73656E64  # any number; held for as long as the table is made


def find(url: sa.URL) -> str:
    """Return the identity of an engine's database that was migrated; the first call gives one."""
    server = url.get_backend_name() == "postgresql"
    if server:
        engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
    else:
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS_MAX})
    table = f"{_SCHEMA}.sendense_engine" if server else "sendense_engine"
    try:
        with engine.begin() as connection:
            # Two that make a table at once would fail each other.
            connection.execute(
                sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})" if server else "BEGIN IMMEDIATE")
            )
            connection.execute(
                sa.text(f"CREATE TABLE IF NOT EXISTS {table} (identity VARCHAR(100) NOT NULL)")
            )
            found = connection.scalar(sa.text(f"SELECT identity FROM {table}"))  # noqa: S608 - ours
            if found is None:
                found = str(uuid.uuid4())
                connection.execute(
                    sa.text(f"INSERT INTO {table} VALUES (:identity)"),  # noqa: S608 - ours
                    {"identity": found},
                )
            return str(found)
    finally:
        engine.dispose()


def declare(catalog: Catalog, identity: str) -> None:
    """Write down which engine the hub uses. Unfinished jobs of another one are ended as lost."""
    with catalog.write() as session:
        before = session.scalar(sa.select(JobEngineRow.identity))
        if before == identity:
            return
        session.execute(sa.delete(JobEngineRow))
        session.add(JobEngineRow(identity=identity))
    if before is not None:
        _log.warning("the job engine's database is another one than before")


def check(catalog: Catalog, identity: str) -> None:
    """Raise Conflict, kind `engine-not-shared`, where the hub uses another engine."""
    with catalog.read() as session:
        wanted = session.scalar(sa.select(JobEngineRow.identity))
    if wanted not in {None, identity}:
        raise Conflict(
            "this worker's job engine is not the hub's: it would get no jobs",
            kind="engine-not-shared",
            hint="give hub and workers the same SENDENSE_ENGINE_URL; workers on several machines"
            " need a PostgreSQL there, since an SQLite file is one machine's",
        )


def find_hub(catalog: Catalog, ids: IdSource) -> str:
    """Return the hub's name on platforms, `hub-` and 16 characters; the first call gives one."""
    with catalog.read() as session:
        found = session.get(HubRow, ONLY)
    if found is not None:
        return found.name
    with catalog.write() as session:
        found = session.get(HubRow, ONLY)  # another process may have been faster
        if found is None:
            found = HubRow(id=ONLY, name=new_id("hub", ids))
            session.add(found)
        return found.name
