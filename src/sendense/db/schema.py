"""Bringing a database to the schema this code knows."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from sendense.core.errors import Invalid, Unavailable
from sendense.db.catalog import Catalog

MIGRATIONS = Path(__file__).parent / "migrations"


def find_revision(catalog: Catalog) -> str | None:
    """Return the revision that the database is at, None for an empty database."""
    with catalog.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Return the revision that this code needs."""
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert head is not None, f"no migrations in {MIGRATIONS}"
    return head


def migrate(catalog: Catalog) -> None:
    """Bring the database to the newest revision; do nothing where it is there already.

    Raises Invalid, kind `catalog-newer`, and changes nothing where the database was written by a
    newer version of the product.
    """
    _refuse_newer(find_revision(catalog))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with catalog.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check(catalog: Catalog) -> None:
    """Raise unless the database is at exactly the revision this code needs.

    For processes that must not migrate: raises Unavailable, kind `catalog-older`, where the hub
    has not migrated yet, and Invalid, kind `catalog-newer`, as `migrate` does.
    """
    revision = find_revision(catalog)
    _refuse_newer(revision)
    if revision != newest_revision():
        raise Unavailable(
            f"the catalog is at revision {revision}, this version needs {newest_revision()}",
            kind="catalog-older",
            hint="start `sendense serve` first: it brings the catalog up to date",
        )


def _refuse_newer(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    if revision is not None and revision not in known:
        raise Invalid(
            f"the catalog is at revision {revision}, which this version does not know",
            kind="catalog-newer",
            hint="it was written by a newer sendense: start that version, or restore the catalog"
            " from a copy made before the upgrade",
        )
