"""Writing one disk: chunks into packs, ids into a disk map, checkpoints on the way.

A writer is used by one thread at a time, but for `seal`. Packs are put by a thread behind it, so
that the disk's latency does not add to the reading's.
"""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from sendense.core.errors import Corrupt, Exists, Invalid, NotFound
from sendense.core.extent import Extent
from sendense.repository import format, pack, record, segments, session
from sendense.repository import index as index_module
from sendense.repository.checkpoints import Checkpoints, Counted
from sendense.repository.chunk import ID_LENGTH, ZERO_ID, Codec
from sendense.repository.diskmap import MapBuilder
from sendense.repository.format import Frame
from sendense.repository.index import Segment, SessionIndex
from sendense.repository.manifest import DiskIdentity, DiskRecord, DiskTotals, Mode
from sendense.repository.pack import BlobType, Kind, PackBuilder, PackRef
from sendense.repository.parent import ParentMap
from sendense.repository.session import Attempt, CheckpointPack, Done, MapRun
from sendense.repository.storage.base import Buffer
from sendense.repository.uploader import Uploader
from sendense.repository.writer_place import Place

RUNS_MAX = 1 << 14  # runs of a checkpoint: bounds it where nothing new seals a pack
IDS_MAX = 1 << 16  # ids of a checkpoint: 2 MiB
NODES_LOOKED_UP = 1 << 8  # together; at most 2 MiB of them wait for it
VERIFY_BATCH = 1 << 12  # ids said to be known, looked up together
CHECKPOINT_SECONDS_MAX = 600.0  # between signs of life: a sixth of what a collector waits for one


class DiskWriter:
    """Writes one disk of one session. Use as a context manager; `finish` makes it count.

    Calls come in ascending order of chunk index, one at a time. A chunk never mentioned keeps the
    parent's id where the mode is incremental, and is zero where it is full. Whatever is raised,
    what checkpoints hold stays and the next writer of the same attempt goes on from there.

    Attributes:
        resume_index: chunks below it are durable from an earlier process; begin there.
        counted: what was stored for the disk, by those processes too.
    """

    def __init__(
        self, place: Place, session_id: str, attempt: Attempt, parent: DiskRecord | None
    ) -> None:
        self._place = place
        self._session_id = session_id
        self._attempt = attempt
        self._parent = parent
        self._parent_map = self._open_parent(parent)
        self._checkpoints = Checkpoints(place.storage, session_id, attempt, place.clock)
        self._begin()
        self._checkpoints.take_over()
        try:
            self._replay()
        except (Corrupt, NotFound):
            # Checkpoints save time, never data: where they do not hold, begin anew.
            self.close()
            self._checkpoints.take_over(discard=True)
            self._begin()
        except BaseException:
            self.close()
            raise
        self.resume_index = self._map.position

    def _begin(self) -> None:
        """Set everything to the start of the disk."""
        self._uploader = Uploader()
        self._index = SessionIndex()
        self._own_segments: list[Segment] = []
        self._segment_count = 0
        self._builders: dict[Kind, PackBuilder | None] = {Kind.DATA: None, Kind.META: None}
        self._ordinals: dict[Kind, int] = {}
        self._log: list[tuple[int, int, list[bytes]]] = []
        self._log_ids = 0
        self._unverified: list[bytes] = []
        self._new_nodes: dict[bytes, bytes] = {}  # bytes by id, not looked up yet
        self._root: bytes | None = None
        self._checkpoint_at = self._place.clock.monotonic() + CHECKPOINT_SECONDS_MAX
        self.counted = Counted()
        parent = self._parent if self._attempt.mode is Mode.INCREMENTAL else None
        self._seam = self._find_seam(parent)
        self._map = MapBuilder(
            self.chunk_count,
            store=self._store_node,
            parent=self._parent_map.map if self._parent_map and parent else None,
        )

    def _find_seam(self, parent: DiskRecord | None) -> int | None:
        """Return the chunk that was the parent's short last one and is longer now, or None."""
        if parent is None or self.disk.size_bytes == parent.size_bytes:
            return None
        return parent.chunk_count - 1 if parent.size_bytes % self.chunk_size else None

    def _open_parent(self, parent: DiskRecord | None) -> ParentMap | None:
        if parent is None or parent.chunk_size != self.chunk_size:
            return None
        lost = self._place.segments.list_lost()
        place = self._place
        found = ParentMap(parent, load=place.get_node, load_many=place.get_nodes, lost=lost)
        # A full read compares only to save time.
        return found if self._attempt.mode is Mode.INCREMENTAL or found.is_whole() else None

    def list_lost(self) -> list[Extent]:
        """Return which bytes of the parent lie only in packs that were found bad.

        An incremental reads them again, so that they are stored again. Raises Corrupt, kind
        `parent-damaged`, where it is nodes of the parent's map: then the disk is read in full.
        """
        return list(self._parent_map.list_lost()) if self._parent_map else []

    @property
    def disk(self) -> DiskIdentity:
        """The disk being written."""
        return self._attempt.disk

    @property
    def chunk_size(self) -> int:
        """Bytes of every chunk but the last."""
        return self._attempt.chunk_size

    @property
    def chunk_count(self) -> int:
        """Number of chunks of the disk."""
        return -(-self.disk.size_bytes // self.chunk_size)

    def chunk_length(self, index: int) -> int:
        """Return the plain length of a chunk."""
        return min(self.chunk_size, self.disk.size_bytes - index * self.chunk_size)

    def identify(self, data: Buffer) -> bytes:
        """Return the id of a chunk's plain bytes, not all of them zero. From any thread."""
        return self._place.storage.keys.identify(data)

    def parent_id(self, index: int) -> bytes | None:
        """Return the id at the same place of the parent's map; None without a parent to compare.

        Cheap when asked in ascending order. One call at a time.
        """
        return self._parent_map.get(index) if self._parent_map else None

    def find_known(self, ids: Sequence[bytes]) -> list[bool]:
        """Return for each id whether the repository or this writer holds it already.

        One look-up for many ids is far cheaper than many for one. One call at a time.
        """
        if not ids:
            return []
        known = self._find_own(ids) | self._place.segments.find_known(ids)
        return [bool(flag) for flag in known]

    def _find_own(self, ids: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return for each id whether this writer has stored it."""
        known = self._index.find_known(ids)
        for segment in self._own_segments:
            known |= segment.find(index_module.Ids.of(ids)) >= 0
        return known

    def expect(self, leaves: Iterator[int]) -> None:
        """Say which leaves of the parent's map will be needed; see `MapReader.expect`.

        They are those of the chunks that `parent_id` is asked for and of those that are put in an
        incremental. `leaves` is advanced later, by whoever does that.
        """
        if self._parent_map:
            self._parent_map.map.expect(leaves)

    def put_zero(self, start: int, count: int = 1) -> None:
        """Say that chunks are zeros. Costs next to nothing, whatever the count."""
        self._map.put_zero(start, count)
        self._remember(start, count, [])

    def put_known(self, index: int, chunk_id: bytes) -> None:
        """Say that a chunk has an id for which `find_known` or `parent_id` answered.

        Raises Invalid, now or later, where the repository does not hold it after all.
        """
        assert chunk_id != ZERO_ID, "chunks of zeros are put by put_zero"
        self._unverified.append(chunk_id)
        if len(self._unverified) >= VERIFY_BATCH:
            self._verify_known()
        self._put_id(index, chunk_id)

    def put_chunk(
        self, index: int, chunk_id: bytes, codec: Codec, stored: Buffer, plain_length: int
    ) -> bool:
        """Store a chunk. `stored` must not change afterwards.

        Returns False where the same chunk was stored a moment ago and nothing was added.
        """
        assert chunk_id != ZERO_ID, "no chunk hashes to the zero id"
        if plain_length != self.chunk_length(index) or not 0 < len(stored) <= plain_length:
            raise Invalid(
                f"chunk {index} has {plain_length} bytes, not {self.chunk_length(index)}",
                kind="chunk-length-invalid",
            )
        is_new = not self._index.is_recent(chunk_id)
        if is_new:
            self._add(Kind.DATA, BlobType.CHUNK, codec, chunk_id, stored, plain_length)
            self.counted = Counted(
                self.counted.bytes_new + plain_length,
                self.counted.bytes_stored + pack.BLOB.size + len(stored),
            )
        self._put_id(index, chunk_id)
        if self._is_full(Kind.DATA):
            self._checkpoint()
            self._spill()
        return is_new

    def seal(self) -> None:
        """Seal and open again what was put. From any thread; a last one does what is left."""
        builder = self._builders[Kind.DATA]
        if builder is not None:
            builder.seal_added()

    def finish(self, totals: DiskTotals) -> DiskRecord:
        """Make the disk durable and return its record for the manifest.

        Idempotent: where the disk was finished before at this moment, that record is returned.
        """
        self._verify_known()
        self._check_growth()
        if self._root is None:  # a map is finished once, whatever fails after it
            self._root = self._map.finish()
        self._add_nodes()
        for kind in Kind:
            self._flush(kind)
        self._uploader.drain()
        if len(self._index):
            self._put_segment()
        done = Done(
            self._session_id, self._record(totals, self._root), tuple(self._segment_names())
        )
        name = session.done_name(
            self._place.storage.keys, self._session_id, self.disk.key, self._attempt.moment
        )
        try:
            format.put_frame(self._place.storage, Frame.DONE, name, record.dump(done))
        except Exists:
            found = session.find_done(
                self._place.storage, self._session_id, self.disk.key, self._attempt.moment
            )
            if found is None:
                raise
            return found.disk
        return done.disk

    def close(self) -> None:
        """Stop putting packs and let go. What checkpoints hold stays for the next writer."""
        self._uploader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # From here on: how it works inside.

    def _put_id(self, index: int, chunk_id: bytes) -> None:
        self._map.put(index, chunk_id)
        self._remember(index, 1, [chunk_id])

    def _remember(self, start: int, count: int, ids: list[bytes]) -> None:
        """Note a change of the map for the next checkpoint."""
        self._pass_seam(start, count)
        last = self._log[-1] if self._log else None
        if last and last[0] + last[1] == start and bool(last[2]) == bool(ids):
            last[2].extend(ids)
            self._log[-1] = (last[0], last[1] + count, last[2])
        else:
            self._log.append((start, count, ids))
        self._log_ids += len(ids)
        if (
            len(self._log) >= RUNS_MAX
            or self._log_ids >= IDS_MAX
            or self._place.clock.monotonic() >= self._checkpoint_at
        ):
            self._checkpoint()

    def _pass_seam(self, start: int, count: int) -> None:
        if self._seam is not None and start <= self._seam < start + count:
            self._seam = None

    def _checkpoint(self) -> None:
        """Seal the data pack, and behind it put a checkpoint of all up to here."""
        # Before the checkpoint relies on them, not after.
        self._verify_known()
        runs = [MapRun(start, count, b"".join(ids)) for start, count, ids in self._log]
        self._log, self._log_ids = [], 0
        self._checkpoint_at = self._place.clock.monotonic() + CHECKPOINT_SECONDS_MAX
        position, counted = self._map.position, self.counted

        def put(refs: tuple[PackRef, ...]) -> None:
            self._checkpoints.put(
                runs,
                resume_index=position,
                counted=counted,
                packs=tuple(CheckpointPack(ref.id, ref.size) for ref in refs),
            )

        builder = self._builders[Kind.DATA]
        if builder is None:
            self._uploader.submit(lambda: put(()))
        else:
            ordinal = self._ordinals[Kind.DATA]
            self._builders[Kind.DATA] = None
            self._uploader.submit(lambda: put((self._put_pack(builder, ordinal),)))

    def _add(
        self,
        kind: Kind,
        blob_type: BlobType,
        codec: Codec,
        blob_id: bytes,
        stored: Buffer,
        plain_length: int,
    ) -> None:
        builder = self._builders[kind]
        if builder is None:
            salt = self._place.ids.random_bytes(pack.SALT_LENGTH)
            keys = self._place.storage.keys
            builder = PackBuilder(kind, session_id=self._session_id, salt=salt, keys=keys)
            self._builders[kind] = builder
            self._ordinals[kind] = len(self._index.packs)
            self._index.packs.append(None)
        entry = builder.add(blob_type, codec, blob_id, stored, plain_length=plain_length)
        self._index.add(self._ordinals[kind], entry)

    def _is_full(self, kind: Kind) -> bool:
        builder = self._builders[kind]
        target = pack.TARGET_BYTES if kind is Kind.DATA else pack.META_TARGET_BYTES
        return builder is not None and (builder.size >= target or len(builder) >= pack.ENTRIES_MAX)

    def _flush(self, kind: Kind) -> None:
        """Put what a builder holds, without a checkpoint."""
        builder = self._builders[kind]
        if builder is not None:
            ordinal = self._ordinals[kind]
            self._builders[kind] = None
            self._uploader.submit(lambda: _discard(self._put_pack(builder, ordinal)))

    def _put_pack(self, builder: PackBuilder, ordinal: int) -> PackRef:
        """Verify and store a pack; on the uploader's thread."""
        sealed = builder.seal()
        self._place.require_room(sealed.ref.size)
        pack.put(self._place.storage, sealed)
        self._index.packs[ordinal] = sealed.ref
        return sealed.ref

    def _store_node(self, data: bytes) -> bytes:
        node_id = self._place.storage.keys.identify_node(data)
        self._new_nodes[node_id] = data
        if len(self._new_nodes) >= NODES_LOOKED_UP:
            self._add_nodes()
        return node_id

    def _add_nodes(self) -> None:
        """Store those of the new nodes that are not known."""
        known = self.find_known(list(self._new_nodes))
        for (node_id, data), is_known in zip(self._new_nodes.items(), known, strict=True):
            if not is_known:
                self._add(Kind.META, BlobType.NODE, Codec.RAW, node_id, data, len(data))
                if self._is_full(Kind.META):
                    self._flush(Kind.META)
        self._new_nodes.clear()  # last: what failed is added again, or never forgotten

    def _spill(self) -> None:
        """Turn the session's own index into a segment before it grows too large."""
        if len(self._index) >= index_module.ENTRIES_MAX:
            self._flush(Kind.META)
            self._uploader.drain()
            name = self._put_segment()
            self._own_segments.append(segments.open_segment(self._place.storage, name))

    def _put_segment(self) -> str:
        refs = [ref for ref in self._index.packs if ref is not None]
        assert len(refs) == len(self._index.packs), "every pack is put before it is indexed"
        name = self._segment_name(self._segment_count + 1)
        buffers = index_module.seal_segment(
            self._index.table(),
            refs,
            session_id=self._session_id,
            keys=self._place.storage.keys,
        )
        self._place.storage.put_if_absent(name, buffers)
        self._segment_count += 1
        self._index.clear()
        return name

    def _segment_name(self, number: int) -> str:
        attempt = session.attempt_digest(self._place.storage.keys, self._attempt)
        ending = f"{attempt}.{self._checkpoints.owner}.{number}"
        return segments.segment_name(self._session_id, self.disk.key, ending)

    def _segment_names(self) -> list[str]:
        return [self._segment_name(number) for number in range(1, self._segment_count + 1)]

    def _verify_known(self) -> None:
        """Look up what the caller said is known: a backup must never refer to nothing."""
        ids = self._unverified
        if not ids:
            return
        # Condemned since it was found known, or the parent's: this session is waited for.
        known = self._find_own(ids) | self._place.segments.find_held(ids)
        if not known.all():
            missing = ids[int(np.argmin(known))].hex()
            raise Invalid(
                f"chunk {missing} is said to be known, but the repository does not hold it",
                kind="chunk-unknown",
                chunk_id=missing,
            )
        self._unverified = []  # last: whoever goes on after an error is stopped again

    def _check_growth(self) -> None:
        """Refuse to inherit the parent's short last chunk where the disk has grown behind it."""
        if self._seam is not None:
            raise Invalid(
                f"disk {self.disk.key} has grown, but its chunk {self._seam} was not read again",
                kind="grown-chunk-unread",
            )

    def _replay(self) -> None:
        """Go through the inherited checkpoints as if their calls were made again."""
        for head, runs in self._checkpoints.list_inherited():
            for found in head.packs:
                ordinal = len(self._index.packs)
                ref = pack.read_ref(self._place.storage, found.name)
                if ref.size != found.size:
                    raise format.corrupt(found.name, "a checkpoint names it with another size")
                self._index.packs.append(ref)
                for entry in pack.read_directory(self._place.storage, ref):
                    self._index.add(ordinal, entry)
            self._spill()
            for run in runs:
                self._replay_run(run)
            if head.resume_index != self._map.position:
                raise format.corrupt("of a checkpoint", "its runs end elsewhere than it says")
            self.counted = Counted(head.bytes_new, head.bytes_stored)

    def _replay_run(self, run: MapRun) -> None:
        if run.start < self._map.position or run.start + run.count > self.chunk_count:
            raise format.corrupt("of a checkpoint", "its runs are out of order")
        self._pass_seam(run.start, run.count)
        if not run.ids:
            self._map.put_zero(run.start, run.count)
        for number in range(len(run.ids) // ID_LENGTH):
            start = number * ID_LENGTH
            self._map.put(run.start + number, run.ids[start : start + ID_LENGTH])

    def _record(self, totals: DiskTotals, root: bytes) -> DiskRecord:
        disk = self.disk
        return DiskRecord(
            key=disk.key,
            index=disk.index,
            label=disk.label,
            uuid=disk.uuid,
            size_bytes=disk.size_bytes,
            chunk_size=self.chunk_size,
            root=root,
            moment=self._attempt.moment,
            lineage=disk.lineage,
            change_id=totals.change_id,
            parent_backup_id=self._attempt.parent_backup_id,
            mode=totals.mode,
            mode_reason=totals.mode_reason,
            bytes_read=totals.bytes_read,
            bytes_new=totals.bytes_new,
            bytes_deduplicated=totals.bytes_deduplicated,
            bytes_stored=self.counted.bytes_stored,
        )


def _discard(_: object) -> None:
    """Turn a job with a result into one without."""
