"""The server's own key and exports, with no server: its settings, its database, a repository."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sendense import app
from sendense.cli import effective_settings, standalone, text, unlocking
from sendense.cli.command import Session
from sendense.cli.output import Column
from sendense.cli.serve import alone
from sendense.core import clock
from sendense.core.clock import SystemClock
from sendense.core.errors import Corrupt, NotFound
from sendense.core.ids import SystemIds
from sendense.db import url as urls
from sendense.db.catalog import Catalog
from sendense.hub.exports import keys, service
from sendense.hub.sealing import Vault
from sendense.repository import hub_exports, recovery
from sendense.repository.hub_exports import Export
from sendense.repository.keyed import KeyedStorage
from sendense.settings import Settings

SETTINGS_FILE = "restored-settings.json"
OPENS = (
    "It opens the exports of this server, which hold the keys of its repositories and its"
    " passwords."
)


def show_recovery_key(session: Session, *, config: Path | None, data_dir: Path | None) -> None:
    """Print the key, and remember that it was."""
    settings = _read_settings(config, data_dir)
    ids = SystemIds()
    _require_catalog(settings)
    catalog = app.open_catalog(settings, migrate=False)
    try:
        vault = Vault(app.create_key_places(settings, ids), ids)
        name, root_key = keys.get_or_make(catalog, vault, ids)
        told = recovery.to_text(root_key)
        if session.output.as_json:
            session.output.json(json.dumps({"hub": name, "recovery_key": told}))
        else:
            unlocking.show_recovery_key(
                session, told, whose=f"The recovery key of {name}:", opens=OPENS
            )
        keys.note_shown(catalog, now=SystemClock().now())
    finally:
        catalog.close()


def _read_settings(config: Path | None, data_dir: Path | None) -> Settings:
    """Return the server's settings; what is written from now on is for its user alone."""
    os.umask(effective_settings.UMASK)
    return effective_settings.read_settings(config=config, data_dir=data_dir)


def _require_catalog(settings: Settings) -> None:
    """Raise NotFound where there is no catalog yet: SQLite would make an empty one."""
    url = urls.parse(settings.catalog_url)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise NotFound(
            f"there is no catalog at {url.database}",
            kind="catalog-unknown",
            hint="name the server's data directory by --data-dir, or its configuration by --config",
        )


def list_exports(session: Session, place: str, key: str) -> None:
    """List what a key opens. Raises Corrupt afterwards where an export is damaged."""
    with _opened(place, key) as storage:
        found, damaged = hub_exports.scan(storage)
        others = hub_exports.count_of_other_keys(storage)
    if session.output.as_json:
        document = {
            "exports": [_describe(one) for one in found],
            "total": len(found),
            "of_other_keys": others,
        }
        session.output.json(json.dumps(document, ensure_ascii=False))
    elif found:
        session.output.table(
            [Column("EXPORT"), Column("MADE"), Column("SERVER"), Column("ROWS", right=True)],
            [
                (_name(one), text.moment(clock.format_utc(one.head.at)), one.head.hub, _rows(one))
                for one in found
            ],
        )
    else:
        session.output.note(f"no exports that this key opens, {others} of other keys")
    if damaged:
        raise damaged[0]


def restore(
    session: Session,
    place: str,
    key: str,
    *,
    export_name: str | None,
    config: Path | None,
    data_dir: Path | None,
) -> None:
    """Fill the empty catalog of a server that does not run."""
    settings = _read_settings(config, data_dir)
    ids = SystemIds()
    with alone(settings), _opened(place, key) as storage:
        export = _choose(session, storage, place, export_name)
        catalog = Catalog(settings.catalog_url)
        try:
            done = service.restore(
                catalog,
                app.create_key_places(settings, ids),
                storage,
                export,
                now=SystemClock().now(),
                ids=ids,
            )
        finally:
            catalog.close()
    kept = settings.data_dir / SETTINGS_FILE
    kept.write_text(json.dumps(done.settings, indent=2, ensure_ascii=False) + "\n")
    if session.output.as_json:
        document = {
            **_describe(export),
            "jobs_unfinished": done.jobs_unfinished,
            "repositories": list(done.repositories),
            "settings_file": str(kept),
        }
        session.output.json(json.dumps(document, ensure_ascii=False))
        return
    session.output.line(
        f"{text.count(done.rows, 'row')} restored: {export.head.hub} as of"
        f" {text.moment(clock.format_utc(export.head.at))}"
    )
    session.output.line(f"its settings are in {kept}: take over what you still want")
    if done.jobs_unfinished:
        session.output.line(f"{text.count(done.jobs_unfinished, 'job')} had not ended: they fail")
    session.output.note(
        "Now start the server: it imports what came into "
        f"{', '.join(done.repositories) or 'repositories'} since.",
        style="",
    )


def _choose(session: Session, storage: KeyedStorage, place: str, wanted: str | None) -> Export:
    """Return the export that is wanted, or the newest; damaged ones are warned of."""
    found, damaged = hub_exports.scan(storage)
    for error in damaged:
        session.output.warn(error.message)
    for one in reversed(found):
        if wanted in {None, _name(one)}:
            return one
    if damaged and wanted is None:
        raise Corrupt(damaged[0].message, kind="hub-export-damaged")
    others = hub_exports.count_of_other_keys(storage)
    what = f"no export {wanted}" if wanted else "no export that this key opens"
    raise NotFound(
        f"in the repository at {place} is {what}",
        kind="hub-export-unknown",
        hint=f"{others} are of other servers' keys; `sendense hub list` shows this key's",
    )


@contextmanager
def _opened(place: str, key: str) -> Iterator[KeyedStorage]:
    with standalone.open_storage(place) as (storage, _):
        yield hub_exports.open_place(storage, recovery.parse(key))


def _describe(one: Export) -> dict[str, Any]:
    return {
        "export": _name(one),
        "hub": one.head.hub,
        "at": clock.format_utc(one.head.at),
        "version": one.head.version,
        "revision": one.head.revision,
        "rows": _rows(one),
    }


def _name(one: Export) -> str:
    return one.folder.rstrip("/").rpartition("/")[2]


def _rows(one: Export) -> int:
    return sum(one.head.tables.values())
