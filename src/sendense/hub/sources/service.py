"""Registering sources, trying them, and starting their discovery."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from sendense.connectors import registry
from sendense.connectors.base import Source as PlatformSource
from sendense.connectors.capability import Identified
from sendense.core.errors import Conflict, Denied, Invalid
from sendense.core.ids import new_id
from sendense.db.tables import SourceRow
from sendense.hub import sealing
from sendense.hub.backups import queries as backups
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs import service as job_service
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.sealing import Belonging
from sendense.hub.sources import queries
from sendense.hub.sources.schemas import (
    Certificate,
    ChangeSource,
    CreateSource,
    Credentials,
    DiscoverAccepted,
    Source,
    SourceList,
    SourceTested,
)


def show(session: Session, hub: Hub, rows: Sequence[SourceRow]) -> list[Source]:
    """Return sources as the API shows them."""
    counts = queries.count_vms(session, [row.id for row in rows])
    return [
        Source(
            id=row.id,
            name=row.name,
            type=row.type,
            config=row.config,
            uuid=row.uuid,
            warnings=list(hub.list_warnings(row.type, row.config)),
            has_credentials=row.credentials is not None,
            username=sealing.find_username(row.credentials),
            required_labels=row.required_labels or {},
            vm_count=counts.get(row.id, 0),
            discovered_at=row.discovered_at,
            trouble=row.trouble or None,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in rows
    ]


def list_sources(session: Session, hub: Hub, *, limit: int, offset: int) -> SourceList:
    """Return a page of sources."""
    rows, total = queries.list_sources(session, limit=limit, offset=offset)
    return SourceList(sources=show(session, hub, rows), total=total)


def create(session: Session, hub: Hub, wanted: CreateSource) -> Source:
    """Register a source whose configuration `hub.check_source` accepted."""
    if wanted.credentials is None and wanted.type in registry.WITH_CREDENTIALS:
        raise _lacks_credentials(f"is missing: a source of type {wanted.type} is logged in to")
    queries.check_name_free(session, wanted.name)
    now = hub.clock.now()
    source_id = new_id("source", hub.ids)
    row = SourceRow(
        id=source_id,
        # Neither image files nor a bare QEMU have an identity of their own.
        uuid=source_id,
        name=wanted.name,
        type=wanted.type,
        config=wanted.config,
        credentials=None,
        required_labels=wanted.required_labels or None,
        created_at=now,
        updated_at=now,
        trouble="",
    )
    queries.check_host_free(session, row)
    if wanted.credentials is not None:
        row.credentials = _seal(session, hub, row, wanted.credentials)
    session.add(row)
    session.flush()
    return show(session, hub, [row])[0]


def change(session: Session, hub: Hub, source_id: str, wanted: ChangeSource) -> Source:
    """Set a source's name, configuration or demands; jobs that were asked for keep theirs."""
    row = queries.get_source(session, source_id)
    if wanted.name is not None:
        queries.check_name_free(session, wanted.name, but=source_id)
        row.name = wanted.name
    if wanted.config is not None:
        _refuse_moving(row, wanted)
        row.config = wanted.config
        queries.check_host_free(session, row)
    if wanted.credentials is not None:
        row.credentials = _seal(session, hub, row, wanted.credentials)
    if wanted.required_labels is not None:
        row.required_labels = wanted.required_labels or None
    row.updated_at = hub.clock.now()
    session.flush()
    return show(session, hub, [row])[0]


def delete(session: Session, source_id: str) -> None:
    """Forget a source and its VMs. Raises Conflict while jobs run or its VMs have backups."""
    row = queries.get_source(session, source_id)
    active = jobs.list_active(session, source_id=source_id)
    if active:
        raise Conflict(
            f"job {active[0].id} works on source {row.name}",
            kind="source-busy",
            hint="wait for it, or cancel it",
            job_id=active[0].id,
        )
    vm_ids = queries.list_vm_ids(session, source_id)
    count = backups.count_live(session, vm_ids=vm_ids)
    if count:
        raise Conflict(
            f"VMs of source {row.name} have {count} backups",
            kind="source-has-backups",
            hint="delete the backups first, or keep the source",
            backups=count,
        )
    queries.delete_source(session, source_id)


def open_registered(hub: Hub, row: SourceRow) -> PlatformSource:
    """Open a registered source with its credentials; the caller closes it."""
    return hub.open_source(row.type, row.config, open_credentials(hub, row))


def open_credentials(hub: Hub, row: SourceRow) -> dict[str, str] | None:
    """Return what a source is logged in with, or None. Raises what `Vault.open` does."""
    return None if row.credentials is None else hub.vault.open(row.credentials, _belonging(row))


def _seal(session: Session, hub: Hub, row: SourceRow, given: Credentials) -> dict[str, Any]:
    return hub.vault.seal(
        given.reveal(), _belonging(row), may_make_key=not queries.is_any_sealed(session, but=row.id)
    )


def _belonging(row: SourceRow) -> Belonging:
    return Belonging(source_id=row.id, host=str(row.config.get("host", "")))


def _refuse_moving(row: SourceRow, wanted: ChangeSource) -> None:
    """Refuse another host with the old password: it would be told to whoever answers there."""
    if row.credentials is None or wanted.credentials is not None or wanted.config is None:
        return
    if wanted.config.get("host") != row.config.get("host"):
        raise _lacks_credentials("must be given again where the host changes")


def _lacks_credentials(reason: str) -> Invalid:
    return Invalid(
        f"credentials: {reason}",
        kind="credentials-needed",
        hint="a password is sent only to the host that it was given for",
        errors=[{"field": "credentials", "reason": reason}],
    )


def try_out(
    hub: Hub,
    kind: str,
    config: Mapping[str, Any],
    credentials: Mapping[str, str] | None = None,
) -> SourceTested:
    """Contact a platform. Raises Invalid, Denied or Unavailable with a hint.

    Nobody is logged in with a password that would go to a host whose certificate is not trusted.
    """
    hub.check_source(kind, config, credentials)
    seen = hub.see_certificate(kind, config)
    certificate = None if seen is None else Certificate.model_validate(seen)
    warnings = list(hub.list_warnings(kind, config))
    if seen is not None and (credentials is None or not seen.trusted):
        why = "nothing was logged in to" if seen.trusted else "its certificate is not trusted"
        return SourceTested(
            reachable=True,
            detail=f"a host that shows a certificate; {why}",
            certificate=certificate,
            warnings=warnings,
        )
    source = hub.open_source(kind, config, credentials)
    try:
        detail = source.probe()
        uuid = source.identify() if isinstance(source, Identified) else None
    finally:
        source.close()
    return SourceTested(
        reachable=True,
        detail=detail,
        logged_in=credentials is not None,
        certificate=certificate,
        uuid=uuid,
        registered_as=_find_registered(hub, uuid),
        warnings=warnings,
    )


def try_registered(hub: Hub, source_id: str) -> SourceTested:
    """Contact a registered source's platform, and settle its identity.

    Raises what `try_out` and `open_credentials` do, Denied, kind `certificate-untrusted`, and what
    `queries.settle_identity` does.
    """
    with hub.catalog.read() as session:
        row = queries.get_source(session, source_id)
    tested = try_out(hub, row.type, row.config, open_credentials(hub, row))
    if tested.certificate is not None and not tested.certificate.trusted:
        raise _untrusted(row, tested.certificate)
    if tested.uuid is not None and tested.uuid != row.uuid:
        with hub.catalog.write() as session:
            row = queries.get_source(session, source_id)
            queries.settle_identity(session, row, tested.uuid)
    return tested


def _find_registered(hub: Hub, uuid: str | None) -> str | None:
    if uuid is None:
        return None
    with hub.catalog.read() as session:
        row = queries.find_by_uuid(session, uuid)
    return None if row is None else row.id


def _untrusted(row: SourceRow, certificate: Certificate) -> Denied:
    return Denied(
        f"the certificate of source {row.name} is not trusted: {'; '.join(certificate.problems)};"
        f" its SHA-256 is {certificate.sha256}",
        kind="certificate-untrusted",
        hint="compare it with the one that the host's own console shows, then"
        f" `sendense source trust {row.name} --trust-fingerprint {certificate.sha256}`",
        source_id=row.id,
        sha256=certificate.sha256,
    )


def start_discovery(session: Session, hub: Hub, source_id: str) -> DiscoverAccepted:
    """Write a pending discovery; one that is under way already is answered instead."""
    row = queries.get_source(session, source_id)
    for job in jobs.list_active(session, source_id=source_id):
        if job.kind == JobKind.DISCOVERY and job.cancel_requested_at is None:
            return DiscoverAccepted(job_id=job.id, status=job.status, source_id=row.id)
    job_id = new_id("job", hub.ids)
    jobs.create_job(
        session,
        jobs.NewJob(
            id=job_id,
            kind=JobKind.DISCOVERY,
            subject={"source_id": source_id},
            priority=job_service.PRIORITY_INTERACTIVE,
            created_at=hub.clock.now(),
            source_id=source_id,
        ),
    )
    return DiscoverAccepted(job_id=job_id, source_id=source_id)
