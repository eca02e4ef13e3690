"""What garbage collection does about locks: lengthens what is needed, spares the rest."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from sendense.repository import descriptor, holds, recipients, session
from sendense.repository.gc.survey import Survey
from sendense.repository.gc.verdict import Verdict
from sendense.repository.pack import PackRef
from sendense.repository.repository import Repository

FOLDERS = (session.OUTCOMES, recipients.FOLDER, holds.FOLDER)


def extend(
    repository: Repository,
    survey: Survey,
    list_needed: Callable[[], Iterable[PackRef]],
    *,
    progress: Callable[[int, int], None],
) -> None:
    """Lock for longer what backups need: packs, manifests, and all that a loss would cost them."""
    if repository.descriptor.lock_mode is None:
        return
    names = [
        descriptor.NAME,
        *(ref.name for ref in list_needed()),
        *(one.name for one in survey.manifests.values()),
        *(found.name for folder in FOLDERS for found in repository.storage.list_objects(folder)),
    ]
    repository.locking.extend(names, progress=lambda done: progress(done, len(names)))


def spare(repository: Repository, decide: Callable[[frozenset[bytes]], Verdict]) -> Verdict:
    """Decide, and where packs that would go are locked, decide again without them.

    Deleting them would fail, and rewriting them would free nothing.
    """
    every = decide(frozenset())
    going = every.dead + every.sparse
    until = repository.locking.find_locked(ref.name for ref in going)
    if not until:
        return every
    locked = [ref for ref in going if ref.name in until]
    return replace(
        decide(frozenset(ref.id for ref in locked)),
        locked_bytes=sum(ref.size for ref in locked),
        locked_until=min(until.values()),
    )
