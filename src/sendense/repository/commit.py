"""How a session ends: one name, `outcomes/<sid>`, is created once, by whoever comes first.

That one put-if-absent decides between commit and abort with no clock and no lock. Everything after
it can be done again by anybody: the manifest is in the outcome.
"""

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import sendense
from sendense.core.clock import Clock
from sendense.core.errors import Conflict, Corrupt, Exists, Invalid, NotFound, Unavailable
from sendense.core.ids import IdSource
from sendense.repository import descriptor, format, manifest, record, session
from sendense.repository.backups import Backups
from sendense.repository.format import Frame
from sendense.repository.gc.state import Collected
from sendense.repository.keyed import KeyedStorage
from sendense.repository.locking import Locking
from sendense.repository.manifest import Manifest, ManifestDraft
from sendense.repository.segments import open_segment
from sendense.repository.session import Done, Outcome, State

NONCE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Endings:
    """Commits and aborts the sessions of one repository."""

    storage: KeyedStorage
    backups: Backups
    collected: Collected
    locking: Locking
    clock: Clock
    ids: IdSource

    def commit(self, session_id: str, draft: ManifestDraft) -> Manifest:
        """Make a backup of the finished disks exist, whole or not at all.

        Idempotent: after a crash, or by another process, it finds what was decided and completes
        it. Raises Conflict where a disk is not finished (kind `disk-unfinished`), where the session
        was aborted (`session-aborted`), or where the backup's id is taken (`backup-exists`).
        """
        outcome = session.find_outcome(self.storage, session_id)
        if outcome is None:
            made = self._manifest(session_id, draft)
            self.locking.extend([descriptor.NAME, *self._list_packs(made)])
            outcome = self._decide(session_id, State.COMMITTED, "", made)
        if outcome.manifest is None:
            raise Conflict(
                f"session {session_id} was {outcome.state}: {outcome.reason}",
                kind="session-aborted",
                session_id=session_id,
            )
        self.settle(outcome)
        self.locking.extend([session.outcome_name(session_id), outcome.manifest.name])
        return outcome.manifest

    def _list_packs(self, made: Manifest) -> list[str]:
        """Return the packs that came with a backup."""
        if self.locking.descriptor.lock_mode is None:
            return []
        opened = (open_segment(self.storage, name) for name in made.segments)
        return [ref.name for segment in opened for ref in segment.packs()]

    def abort(self, session_id: str, reason: str) -> Outcome:
        """End a session without a backup, or find that it was committed; idempotent.

        Returns the outcome that counts. Where it is `committed`, the backup exists, and this call
        has completed it.
        """
        outcome = session.find_outcome(self.storage, session_id)
        if outcome is None:
            outcome = self._decide(session_id, State.ABORTED, reason, None)
        self.settle(outcome)
        return outcome

    def fence(self, session_id: str) -> Outcome:
        """End a session that is believed dead; as `abort`, and it is never resumed."""
        outcome = session.find_outcome(self.storage, session_id)
        if outcome is None:
            reason = "it gave no sign of life while a collector waited for it"
            outcome = self._decide(session_id, State.FENCED, reason, None)
        self.settle(outcome)
        return outcome

    def settle(self, outcome: Outcome) -> None:
        """Do what follows from an outcome: the manifest is written, the session's traces go.

        A manifest that was collected since is not written again. Raises Exists where something
        else lies under the manifest's name.
        """
        if outcome.manifest is not None and not self.collected.refresh().is_dead(
            outcome.manifest.object_id
        ):
            made = outcome.manifest
            self._confirm(outcome)
            body = manifest.to_body(made)
            try:
                format.put_frame(self.storage, Frame.MANIFEST, made.name, body)
            except Exists:
                with contextlib.suppress(NotFound):  # collected between these two calls
                    # Sealed anew, the same manifest has other bytes each time.
                    if format.get_frame(self.storage, Frame.MANIFEST, made.name) != body:
                        raise
        self._forget(outcome.session_id)

    def find_commit(self, object_id: str) -> Outcome | None:
        """Return the outcome that committed a manifest, or None. Reads all outcomes: it is rare."""
        for stored in self.storage.list_objects(session.OUTCOMES):
            with contextlib.suppress(Corrupt, Invalid):
                outcome = session.find_outcome(
                    self.storage, stored.name.removeprefix(session.OUTCOMES)
                )
                if outcome and outcome.manifest and outcome.manifest.object_id == object_id:
                    return outcome
        return None

    def settle_all(self) -> int:
        """Complete every session that was decided but not tidied up; return how many."""
        ids = {found.name.split("/")[1] for found in self.storage.list_objects(session.FOLDER)}
        count = 0
        for session_id in sorted(ids):
            try:
                outcome = session.find_outcome(self.storage, session_id)
            except (Corrupt, Invalid):
                continue  # check reports it; no other session has to wait for it
            if outcome is not None:
                with contextlib.suppress(Exists, Corrupt):  # a damaged manifest: check reports it
                    self.settle(outcome)
                    count += 1
        return count

    def _confirm(self, outcome: Outcome) -> None:
        """Make sure that an outcome is durable, for nothing may rest on one that is not.

        It may have been put by a process that died, or whose disk failed, before its folder was
        synced. Putting it again finds it there, and what is found there is durable.
        """
        name = session.outcome_name(outcome.session_id)
        with contextlib.suppress(Exists):
            format.put_frame(self.storage, Frame.OUTCOME, name, record.dump(outcome))

    def _decide(self, session_id: str, state: State, reason: str, made: Manifest | None) -> Outcome:
        """Try to create the outcome, and return the one that is there afterwards."""
        nonce = self.ids.random_bytes(NONCE_BYTES)
        mine = Outcome(session_id, state, nonce, reason, self.clock.now(), made)
        name = session.outcome_name(session_id)
        try:
            format.put_frame(self.storage, Frame.OUTCOME, name, record.dump(mine))
        except (Exists, Unavailable):
            # "Exists" may be the echo of a try of ours whose answer was lost, and a failure may
            # have come after the deed. What is stored decides.
            found = session.find_outcome(self.storage, session_id)
            if found is None:
                raise
            return found
        return mine

    def _manifest(self, session_id: str, draft: ManifestDraft) -> Manifest:
        done = [self._get_done(session_id, key, draft.moment) for key in draft.disk_keys]
        known, _ = self.backups.scan()
        if any(one.backup_id == draft.backup_id for one in known):
            raise Conflict(
                f"there is a backup {draft.backup_id} already",
                kind="backup-exists",
                backup_id=draft.backup_id,
            )
        completed_at = self._completed_at(draft, known)
        days = self.locking.descriptor.immutable_days
        return Manifest(
            object_id=self.ids.random_bytes(manifest.NAME_BYTES).hex(),
            backup_id=draft.backup_id,
            session_id=session_id,
            job_id=draft.job_id,
            vm=draft.vm,
            disks=tuple(one.disk for one in done),
            skipped=draft.skipped,
            consistency=draft.consistency,
            requested_type=draft.requested_type,
            created_at=draft.created_at,
            started_at=draft.started_at,
            completed_at=completed_at,
            tags=draft.tags,
            warnings=draft.warnings,
            segments=tuple(name for one in done for name in one.segments),
            writer_version=sendense.__version__,
            immutable_until=completed_at + timedelta(days=days) if days else None,
            more=draft.more,
        )

    def _completed_at(self, draft: ManifestDraft, known: list[Manifest]) -> datetime:
        """Return now, or a little after the VM's newest backup where the clock was set back."""
        key = (draft.vm.source_uuid, draft.vm.uuid)
        times = [one.completed_at for one in known if (one.vm.source_uuid, one.vm.uuid) == key]
        floor = max(times, default=datetime.min.replace(tzinfo=self.clock.now().tzinfo))
        return max(self.clock.now(), floor + timedelta(microseconds=1))

    def _get_done(self, session_id: str, key: int, moment: str) -> Done:
        done = session.find_done(self.storage, session_id, key, moment)
        if done is None:
            raise Conflict(
                f"disk {key} of session {session_id} is not finished",
                kind="disk-unfinished",
                session_id=session_id,
                disk_key=key,
            )
        return done

    def _forget(self, session_id: str) -> None:
        """Remove a session's traces, its registration last: until then a collector heeds it."""
        names = [
            found.name for found in self.storage.list_objects(f"{session.FOLDER}{session_id}/")
        ]
        for name in sorted(names, key=lambda name: "/registration-" in name):
            with contextlib.suppress(NotFound):  # somebody else tidies up too
                self.storage.delete(name)
