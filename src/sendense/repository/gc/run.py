"""A whole run: finishes the generation that is open, does the next, and says what came of it."""

from collections.abc import Callable
from dataclasses import dataclass

from sendense.repository.gc import records, survey
from sendense.repository.gc.protocol import Collector, Options, Progress, Stage
from sendense.repository.gc.records import Final
from sendense.repository.repository import Repository

POLL_SECONDS = 5.0  # between looks at the sessions that are waited for


@dataclass(frozen=True, slots=True)
class Report:
    """What a run has done.

    Attributes:
        generation: the newest. is_done: it is over; otherwise what it condemned goes by a later
            run, at the earliest in `grace_seconds`.
        backup_count, pack_count, freed_bytes: what was deleted, by generations of this run and
            what was left of one before.
        locked_bytes: not needed, and locked; the first of them until `reclaimable_after`.
    """

    generation: int
    is_done: bool
    grace_seconds: float
    backup_count: int
    pack_count: int
    freed_bytes: int
    locked_bytes: int
    reclaimable_after: str | None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do.

    Attributes:
        backup_count: deleted backups that would go for good. pack_count: packs without anything
            that a backup needs. sparse_count: packs of which `copied_bytes` are still needed and
            would be written anew. freed_bytes: in the end. total_bytes: of all packs.
        waits_for: sessions of writers that are open now.
        locked_bytes, reclaimable_after: as in Report.
    """

    backup_count: int
    pack_count: int
    sparse_count: int
    copied_bytes: int
    freed_bytes: int
    total_bytes: int
    waits_for: tuple[str, ...]
    locked_bytes: int
    reclaimable_after: str | None


def run(
    repository: Repository,
    options: Options,
    *,
    progress: Progress = lambda _what, _done, _total: None,
    on_wait: Callable[[tuple[str, ...]], None] = lambda _sessions: None,
) -> Report:
    """Collect garbage until what is left has to stay condemned for longer.

    Waits for writers as long as it takes; they are ended where they give no sign of life. May be
    stopped at any time: the next run goes on. Raises what `Collector` does.

    `progress` is told how far each part is, `on_wait` every few seconds which sessions are waited
    for.
    """
    collector = Collector(repository, options, progress=progress)
    finals: list[Final] = []
    began = False
    while True:
        stage = collector.step()
        if stage is Stage.PLANNED:
            began = True
        elif stage is Stage.DONE:
            number = repository.collected.refresh().generation
            finals.append(records.get(Final, repository.storage, number))
        elif stage is Stage.DRAIN:
            on_wait(collector.waiting)
            repository.clock.sleep(POLL_SECONDS)
        if stage is Stage.GRACE or (stage is Stage.DONE and began):
            break
    view = repository.collected.refresh()
    return Report(
        generation=view.generation,
        is_done=not view.is_open,
        grace_seconds=collector.grace_left(),
        backup_count=len({one.manifest for final in finals for one in final.struck}),
        pack_count=sum(final.pack_count for final in finals),
        freed_bytes=sum(final.pack_bytes for final in finals),
        locked_bytes=collector.decided.locked_bytes if collector.decided else 0,
        reclaimable_after=collector.decided.reclaimable_after if collector.decided else None,
    )


def preview(repository: Repository, options: Options) -> Preview:
    """Say what a run would delete. Writes nothing, unless the index has to be mended for it."""
    collector = Collector(repository, options)
    struck = tuple(survey.list_struck(repository))
    look = collector.look(struck)
    number = repository.collected.refresh().generation + 1
    decided = collector.judge(look, number)
    going = {one.manifest for one in struck} - look.survey.pinned()
    return Preview(
        backup_count=len(going),
        pack_count=len(decided.dead),
        sparse_count=len(decided.sparse),
        copied_bytes=decided.live_bytes,
        freed_bytes=decided.freed_bytes,
        total_bytes=decided.total_bytes,
        waits_for=tuple(one.id for one in look.survey.sessions if not one.is_reader),
        locked_bytes=decided.locked_bytes,
        reclaimable_after=decided.reclaimable_after,
    )
