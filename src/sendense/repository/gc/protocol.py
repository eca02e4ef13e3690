"""The protocol of garbage collection, step by step. See docs/format.md, "Garbage collection".

    plan → condemned → drain → final → deleted → done

The state lies in the repository: any collector goes on with what another left, several may work on
one generation, and each decision is one put-if-absent. Nobody is locked out: writers go on, and no
clock of one machine is compared with another's.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from sendense.core.errors import Corrupt, NoSpace, NotFound
from sendense.repository import (
    descriptor,
    format,
    locking,
    mending,
    pack,
    quarantine,
    segments,
    session,
)
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.gc import (
    catalog,
    doubles,
    locked,
    mark,
    records,
    rewrite,
    survey,
    verdict,
)
from sendense.repository.gc.catalog import Catalog, Flags
from sendense.repository.gc.look import Look
from sendense.repository.gc.records import Condemned, Done, Final, Part, Plan, Struck
from sendense.repository.gc.state import View
from sendense.repository.gc.survey import Survey
from sendense.repository.gc.verdict import Limits, Verdict
from sendense.repository.index import Segment
from sendense.repository.pack import Kind, PackRef
from sendense.repository.repository import Repository
from sendense.repository.segments import open_segment

NONCE_BYTES = 16
GRACE_SECONDS = 24 * 3600.0  # a net under the drain, for faults of programs
FENCE_SECONDS = 3600.0  # without a sign of life: far above a lease and an outage together
DELETES_PER_STEP = 256
PAUSE_SECONDS = 60.0  # between two looks whether somebody wants a run to end
READER_AGE_MAX = timedelta(days=30)  # a reading that lasts longer, of a deleted backup, fails

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: unknown)


class Stage(StrEnum):
    """What a step did, or what it waits for."""

    PLANNED = "planned"
    CONDEMNED = "condemned"
    GRACE = "grace"  # waits until what is condemned has been so for long enough
    DRAIN = "drain"  # waits for writers that began before
    DECIDED = "decided"
    DELETING = "deleting"
    DONE = "done"
    OVERTAKEN = "overtaken"  # another collector took the step

    @property
    def waits(self) -> bool:
        """Whether nothing was done, and the same step is due again later."""
        return self in {Stage.GRACE, Stage.DRAIN}


@dataclass(frozen=True, slots=True)
class Options:
    """How a collector works.

    Attributes:
        grace_seconds: that packs stay condemned at least. fence_seconds: a writer that gives no
            sign of life for so long, while a collector watches, is ended.
        deletes_per_second: at most; None for no limit.
        is_confirmed: whether more than the usual share may be condemned.
    """

    grace_seconds: float = GRACE_SECONDS
    fence_seconds: float = FENCE_SECONDS
    deletes_per_second: float | None = None
    is_confirmed: bool = False
    limits: Limits = field(default_factory=Limits)


class Collector:
    """Collects the garbage of one repository. `step` until it says DONE; for one thread.

    Raises Corrupt where anything that decides cannot be read: nothing is deleted then.
    """

    def __init__(
        self,
        repository: Repository,
        options: Options = Options(),
        *,
        progress: Progress = lambda _what, _done, _total: None,
    ) -> None:
        descriptor.require_collectable(repository.descriptor)
        self._repository = repository
        self._storage = repository.storage
        self._clock = repository.clock
        self._options = options
        self._progress = progress
        self._watched: dict[str, tuple[tuple[str, ...], float]] = {}
        self._drain: tuple[int, set[str]] | None = None  # generation, writers it waits for
        self._deleted: tuple[int, int] = (0, 0)  # generation, names of its `final` gone through
        self._grace: tuple[int, float] | None = None  # generation, when it is over
        self.waiting: tuple[str, ...] = ()
        self.decided: Verdict | None = None  # of the generation that this one condemned for

    def step(self) -> Stage:
        """Take the next step of the generation that is open, or begin one."""
        view = self._repository.collected.refresh()
        try:
            return self._step(view)
        except (Corrupt, NotFound):
            now = self._repository.collected.refresh()
            if (now.generation, now.parts) == (view.generation, view.parts):
                raise
            # Another collector was faster: what seemed lost is what it deleted meanwhile.
            return Stage.OVERTAKEN

    def _step(self, view: View) -> Stage:
        number = view.generation
        if not view.is_open:
            return self._begin(number + 1)
        if Part.FINAL in view.parts:
            return self._delete(records.get(Final, self._storage, number))
        if Part.CONDEMNED in view.parts:
            return self._decide(number)
        return self._condemn(number)

    # 1. Plan.

    def _begin(self, number: int) -> Stage:
        """Say what goes: what is deleted now, before any session is looked at."""
        self._repository.endings.settle_all()
        self._tidy()
        struck = survey.list_struck(self._repository)[: records.STRUCK_MAX]
        records.put(self._storage, Plan(number, self._nonce(), self._clock.now(), tuple(struck)))
        self._pause()
        return Stage.PLANNED

    def _tidy(self) -> None:
        """Forget readers that a crash must have left behind, and what crashes left of writing."""
        for one in survey.list_sessions(self._storage):
            age = self._clock.now() - one.began if one.began else timedelta(0)
            if one.is_reader and age > READER_AGE_MAX:
                for name in one.signs:
                    with contextlib.suppress(NotFound):
                        self._storage.delete(name)
        self._storage.tidy()

    # 2. Mark and condemn.

    def _condemn(self, number: int) -> Stage:
        """Publish what no writer may refer to any more."""
        plan = self._get_plan(number)
        look = self.look(plan.struck)
        locked.extend(
            self._repository,
            look.survey,
            look.list_needed,
            progress=lambda done, total: self._progress("locking", done, total),
        )
        decided = self.decided = self.judge(look, number)
        if not self._options.is_confirmed:
            verdict.require_share(decided, self._options.limits)
        copies: list[str] = []
        condemned = list(decided.dead)
        if decided.sparse:
            # Copying needs room; without it, what is wholly dead goes first.
            with contextlib.suppress(NoSpace):
                copies = rewrite.Copier(self._repository, number).copy(
                    look.whole, look.live, decided.sparse
                )
                condemned += decided.sparse
        records.put(
            self._storage,
            Condemned(
                number,
                self._nonce(),
                self._clock.now(),
                data=verdict.join_ids(condemned, Kind.DATA),
                meta=verdict.join_ids(condemned, Kind.META),
                copies=tuple(copies),
            ),
        )
        self._list_writers(number)
        return Stage.CONDEMNED

    def judge(self, look: Look, number: int) -> Verdict:
        """Decide about the packs. Reads the headers of those that no segment names."""
        orphans = self.find_orphans(look, number)
        unproven = self._list_unproven(look)
        return locked.spare(
            self._repository,
            lambda spared: verdict.decide(
                look.whole,
                look.live,
                look.packs,
                orphans=[ref for ref in orphans if ref.id not in spared],
                stay=unproven | spared,
                limits=self._options.limits,
            ),
        )

    def _list_unproven(self, look: Look) -> frozenset[bytes]:
        return doubles.list_unproven(self._storage, look.segments, look.whole, look.live, look.bad)

    def look(
        self,
        struck: tuple[Struck, ...],
        *,
        avoid: frozenset[bytes] = frozenset(),
        copies: tuple[str, ...] = (),
    ) -> Look:
        """Find out what is alive. Writes nothing, but for what of the index has to be mended.

        Args:
            struck: deleted backups that keep nothing alive, unless an open session needs them.
            avoid: packs that are condemned.
            copies: segments that say where blobs of these lie besides.
        """
        # Packs before sessions before the index: what is listed, of a session that has ended,
        # and in no segment then, will never be in one.
        packs = survey.list_packs(self._storage)
        found = survey.take(
            self._repository, self._repository.collected.refresh(), pause=self._pause
        )
        opened, expected = self._open_index(found)
        opened += [open_segment(self._storage, name) for name in copies]
        bad = self._repository.segments.quarantined
        whole = catalog.build(opened, avoid=avoid | bad)
        dead = {one.manifest for one in struck} - found.pinned()
        roots = mark.roots_of(one for key, one in found.manifests.items() if key not in dead)
        live = mark.mark(
            whole,
            self._storage,
            roots,
            progress=lambda count: self._progress("marking", count, 0),
        )
        kept = self._mark_checkpoints(found, whole, live)
        over = found.ended | self._repository.collected.list_ended()
        return Look(found, tuple(opened), expected, whole, live, packs, over, kept, bad)

    def _open_index(self, found: Survey) -> tuple[list[Segment], frozenset[str]]:
        """Return the segments that count, and the names of those that should.

        Raises Corrupt where one of these is not there.

        Without it, its packs would look like nobody's.
        """
        index = self._repository.segments
        index.refresh()
        index.view.require_whole()
        mending.mend_index(
            self._storage, index, lambda: index.list_expected(found.manifests.values())
        )
        expected = index.list_expected(found.manifests.values())
        missing = expected - {one.name for one in index.counted}
        for name in sorted(missing | set(index.damaged)):
            raise index.damaged.get(name) or format.corrupt(
                name, "it should be there, and is not", kind="index-corrupt"
            )
        return list(index.counted), frozenset(expected)

    def _mark_checkpoints(self, found: Survey, whole: Catalog, live: Flags) -> frozenset[bytes]:
        """Mark what checkpoints of open sessions refer to; return the packs that they name."""
        kept: set[bytes] = set()
        for one in found.sessions:
            for name in one.checkpoints():
                try:
                    head, runs = session.get_checkpoint(self._storage, name)
                except (Corrupt, NotFound):
                    continue  # it is of no use to its session either, or the session has ended
                kept.update(ref.id for ref in head.packs)
                live[mark.find_held(whole, b"".join(run.ids for run in runs))] = True
        return frozenset(kept)

    def find_orphans(self, look: Look, number: int) -> frozenset[PackRef]:
        """Return the packs in no segment whose writers have ended and cannot make them count."""
        orphans = []
        for ref in look.packs:
            if ref.id in look.whole.ordinals or ref.id in look.kept:
                continue
            try:
                head = self._storage.get_range(ref.name, 0, pack.HEADER.size)
                found = pack.parse_header(head, keys=self._storage.keys, name=ref.name)
            except (Corrupt, NotFound):
                continue  # nobody's; check reports it
            if found.kind is ref.kind and _is_over(found.session_id, look.over, number):
                orphans.append(ref)
        return frozenset(orphans)

    # 3. Drain.

    def _decide(self, number: int) -> Stage:
        """Wait for whoever began before, look again, and say what goes."""
        try:
            plan = records.get(Plan, self._storage, number)
            condemned = records.get(Condemned, self._storage, number)
            for name in condemned.copies:
                open_segment(self._storage, name)
        except (Corrupt, NotFound):
            return self.abandon(number)
        is_drained = self._is_drained(number)
        if not self._is_old_enough(condemned):
            return Stage.GRACE
        if not is_drained:
            return Stage.DRAIN
        return self._finish(plan, condemned)

    def _list_writers(self, number: int) -> None:
        """Note who is open after `condemned` is there: who comes later has read it."""
        self._pause()
        opened = survey.list_sessions(self._storage)
        self._drain = (number, {one.id for one in opened if not one.is_reader})

    def _is_drained(self, number: int) -> bool:
        """Return whether every writer that was open when `condemned` was there has ended."""
        if self._drain is None or self._drain[0] != number:
            self._list_writers(number)
        assert self._drain is not None
        waiting = {one for one in self._drain[1] if self._is_open(one)}
        self._drain = (number, waiting)
        self._watched = {key: seen for key, seen in self._watched.items() if key in waiting}
        self.waiting = tuple(sorted(waiting))
        return not waiting

    def _is_open(self, session_id: str) -> bool:
        """Return whether a session goes on; one that gives no sign of life for long is ended."""
        if session.find_outcome(self._storage, session_id) is not None:
            return False
        now = self._clock.monotonic()
        prefix = f"{session.FOLDER}{session_id}/"
        signs = tuple(stored.name for stored in self._storage.list_objects(prefix))
        seen = self._watched.get(session_id)
        if seen is None or seen[0] != signs:
            self._watched[session_id] = (signs, now)
        elif now - seen[1] >= self._options.fence_seconds:
            self._repository.endings.fence(session_id)
            return False
        return True

    def _is_old_enough(self, condemned: Condemned) -> bool:
        """Return whether the grace is over: by the date, but never later than by our own clock."""
        now = self._clock.monotonic()
        if self._grace is None or self._grace[0] != condemned.generation:
            age = (self._clock.now() - condemned.at).total_seconds()
            left = min(max(0.0, self._options.grace_seconds - age), self._options.grace_seconds)
            self._grace = (condemned.generation, now + left)
        return now >= self._grace[1]

    def grace_left(self) -> float:
        """Return the seconds that what is condemned has to stay so, 0 where nothing is known."""
        return max(0.0, self._grace[1] - self._clock.monotonic()) if self._grace else 0.0

    # 4. Mark again and decide.

    def _finish(self, plan: Plan, condemned: Condemned) -> Stage:
        """Publish what is deleted: of what is condemned, all that nobody has come to need."""
        number = plan.generation
        ids = records.split(condemned.data + condemned.meta, ID_LENGTH)
        look = self.look(plan.struck, avoid=frozenset(ids), copies=condemned.copies)
        gone = frozenset(ids) - look.needed() - self._list_unproven(look)
        dead = {one.manifest for one in plan.struck} - look.survey.pinned()
        index = self._rewrite_index(number, look, gone, frozenset(condemned.copies))
        sizes = {ref.id: ref.size for ref in look.packs}
        records.put(
            self._storage,
            Final(
                generation=number,
                nonce=self._nonce(),
                at=self._clock.now(),
                abandoned=False,
                data=records.join(set(records.split(condemned.data, ID_LENGTH)) & gone),
                meta=records.join(set(records.split(condemned.meta, ID_LENGTH)) & gone),
                pack_bytes=sum(sizes.get(pack_id, 0) for pack_id in gone),
                segments=tuple(self._list_stray_segments(number, look, index)),
                struck=tuple(one for one in plan.struck if one.manifest in dead),
                index=tuple(sorted(index)),
                live=records.join(map(bytes.fromhex, look.survey.manifests.keys() - dead)),
                ended=b"".join(sorted(look.survey.ended)[: records.ENDED_MAX]),
            ),
        )
        return Stage.DECIDED

    def _rewrite_index(
        self, number: int, look: Look, gone: frozenset[bytes], copies: frozenset[str]
    ) -> set[str]:
        """Return the segments that count from now on; none of them names a pack that goes."""
        # What was committed since the survey speaks for itself, until the next generation.
        old = [one for one in look.segments if one.name in look.expected | copies]
        chosen = rewrite.choose_segments(old, gone)
        made = rewrite.Copier(self._repository, number).compact(chosen, gone)
        return {one.name for one in old} - {one.name for one in chosen} | set(made)

    def _list_stray_segments(self, number: int, look: Look, index: set[str]) -> list[str]:
        """Return the segments that nobody will ever count again.

        What this generation supersedes stays until the next one: somebody may be reading it.
        """
        return [
            stored.name
            for stored in self._storage.list_objects(segments.FOLDER)
            if stored.name not in index | look.expected
            and _is_over(segments.session_of(stored.name), look.over, number)
        ]

    def abandon(self, number: int) -> Stage:
        """Give a generation up, unless it was decided before: nothing of it is deleted."""
        given_up = Final.give_up(number, nonce=self._nonce(), at=self._clock.now())
        records.put(self._storage, given_up)
        return Stage.DECIDED

    # 5. Delete.

    def _delete(self, final: Final) -> Stage:
        """Delete some of what `final` names, or put `done` where all of it is gone."""
        names = list(final.names())
        number = final.generation
        if self._deleted[0] != number:
            self._pause()  # or who misses a pack would look at the index again, and see the old one
            self._deleted = (number, 0)
        start = self._deleted[1]
        if start >= len(names):
            quarantine.forget(self._storage, final.packs())
            self._close(final)
            return Stage.DONE
        rate = self._options.deletes_per_second or DELETES_PER_STEP
        end = min(start + min(DELETES_PER_STEP, max(1, int(rate))), len(names))
        for name in names[start:end]:
            with contextlib.suppress(NotFound):  # another collector was here, or this one before
                locking.delete(self._storage, name)
        if self._options.deletes_per_second:
            self._clock.sleep((end - start) / self._options.deletes_per_second)
        self._deleted = (number, end)
        self._progress("deleting", end, len(names))
        return Stage.DELETING

    def _close(self, final: Final) -> None:
        """Put `done`, with all who are dead."""
        number = final.generation
        before = self._repository.collected.read_page(number - 1)
        dead = b"".join(bytes.fromhex(one) for one in sorted({s.manifest for s in final.struck}))
        base = before.base
        if len(before.dead) + len(before.ended) < records.PAGE_BYTES_MAX:
            dead, ended = before.dead + dead, before.ended + final.ended
        else:
            base, ended = number - 1, final.ended
        records.put(self._storage, Done(number, self._clock.now(), base, dead, ended))

    def _get_plan(self, number: int) -> Plan:
        return records.get(Plan, self._storage, number)

    def _nonce(self) -> bytes:
        return self._repository.ids.random_bytes(NONCE_BYTES)

    def _pause(self) -> None:
        """Let everybody's listings become newer than what was put or seen before."""
        until = self._clock.monotonic() + 2 * self._storage.listing_seconds()
        while (left := until - self._clock.monotonic()) > 0:
            self._progress("waiting for the share", 0, 0)
            self._clock.sleep(min(left, PAUSE_SECONDS))


def _is_over(session_id: str, ended: frozenset[bytes], number: int) -> bool:
    """Return whether a session can put nothing any more that counts."""
    if records.is_collector(session_id):
        return 0 < records.generation_of(session_id) < number
    return records.digest(session_id) in ended
