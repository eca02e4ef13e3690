"""Storage in a bucket: S3 and what speaks it, Azure Blob, Google Cloud Storage.

Put-if-absent is the store's own conditional write (`If-None-Match: *`). Every put carries a random
mark in the object's metadata: where an answer was lost, or a try was repeated, the mark tells
whether what lies under the name is this very put, so that exactly one caller succeeds all the same.

The library repeats nothing; every try passes through `_ask`, which counts it, bounds it and says
in the end what went wrong.
"""

import contextlib
import mmap
import random
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore

from sendense.core.errors import Exists, NoSpace, NotFound, ProtocolError
from sendense.repository.storage import base, object_errors
from sendense.repository.storage.base import Buffer, Capacity, StoredObject
from sendense.repository.storage.locks import Locks
from sendense.repository.storage.s3_versions import S3Versions, oldest

if TYPE_CHECKING:
    from obstore import GetOptions  # of its stubs only

T = TypeVar("T")

MARK = "sendenseput"  # Azure wants an identifier, so without hyphens
MARK_BYTES = 16
PAGE_OBJECTS = 1000  # what all three answer at most for one request
STREAM_BYTES = 4 << 20
_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try.

    Attributes:
        tries: of one request. The pauses between ten last a minute at most, which outlasts the
            restart of a server of one's own and a store's request to slow down.
        seconds: after which no further try begins, so that a dead network is reported and not
            waited for.
        request_seconds: of one try; 64 MiB at 2 Mbit/s take 270.
        pause_seconds: before the second try; it doubles with each, up to `pause_seconds_max`.
        in_flight: requests at once by one storage; a reader uses 16, the rest is for writers.
    """

    tries: int = 10
    seconds: float = 300.0
    request_seconds: float = 300.0
    pause_seconds: float = 0.2
    pause_seconds_max: float = 20.0
    in_flight: int = 32


class ObjectStorage:
    """Objects in a bucket, below a prefix that the store adds. Contacts nothing when it is made.

    Attributes:
        requests: how many were made, by kind: put, get, head, list, delete; and `retry`, how many
            of them repeated another.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        limits: Limits = Limits(),
        versions: S3Versions | None = None,
    ) -> None:
        self.requests: Counter[str] = Counter()
        self._store = store
        self._bucket = versions
        self._is_versioned: bool | None = None if versions else False  # None: not known yet
        self._counted: dict[str, str] = {}  # versions of names that have several, as far as known
        self._limits = limits
        self._slots = threading.BoundedSemaphore(limits.in_flight)
        self._lock = threading.Lock()

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """Store an object; see Storage."""
        base.check_name(name)
        body = b"".join(base.buffers_of(data))
        mark = secrets.token_hex(MARK_BYTES)
        is_repeated = False

        def put() -> None:
            nonlocal is_repeated
            # A store may refuse a name that is taken before it has read the body, and hang up,
            # which looks like a broken connection however often the body is sent.
            if is_repeated and self._is_ours(name, mark):
                return
            is_repeated = True
            self._count("put")
            try:
                found = obstore.put(
                    self._store,
                    name,
                    body,
                    mode="create",
                    use_multipart=False,
                    attributes={MARK: mark},
                )
            except (AlreadyExistsError, PreconditionError):
                # A conflict with a put or deletion in progress looks the same (S3's 409), and
                # leaves nothing under the name: then it is worth another try.
                if not self._is_ours(name, mark):
                    raise FileNotFoundError(name) from None
            else:
                self._require_first(name, found["version"])

        self._ask("put", name, put, is_counted=False)

    def _require_first(self, name: str, version: str | None) -> None:
        """Raise Exists where a put went over a marker that hides an object: that one counts."""
        self._note_version(version)
        if version is None or not (versions := self._versions()):
            return
        counted = oldest(versions.list_of(name))
        if counted is None:  # a listing that comes late
            raise FileNotFoundError(name)
        if counted.id != version:
            raise Exists(f"object {name} exists already, behind a delete marker", name=name)

    def _note_version(self, version: str | None) -> None:
        """Learn from an answer whether the bucket keeps versions."""
        if self._is_versioned is None and version != "null":  # put before versions were kept
            self._is_versioned = version is not None

    def _versions(self) -> S3Versions | None:
        """Return what knows the versions, where there are any. Asks where nothing told it yet."""
        if self._is_versioned is None and self._bucket is not None:
            self._is_versioned = self._bucket.is_versioned()
        return self._bucket if self._is_versioned else None

    def _read(self, name: str, call: "Callable[[GetOptions], T]", **asked: Any) -> T:
        """Read the version that counts; behind a delete marker that is still there."""
        options: GetOptions = {}
        if name in self._counted:
            options["version"] = self._counted[name]
        try:
            return self._ask("get", name, lambda: call(options), **asked)
        except NotFound as error:
            if error.kind != "object-missing" or not (versions := self._versions()):
                raise
            self._counted[name] = versions.get_oldest(name).id
            options["version"] = self._counted[name]
            return self._ask("get", name, lambda: call(options), **asked)

    def _is_ours(self, name: str, mark: str) -> bool:
        """Return whether the object that counts is what the put of this mark stored.

        False where there is none; raises Exists where it is another put's.
        """
        options: GetOptions = {"head": True}
        if versions := self._versions():  # what hides it, or lies over it, does not count
            counted = oldest(versions.list_of(name))
            if counted is None:
                return False
            options["version"] = counted.id
        self._count("head")
        try:
            found = obstore.get(self._store, name, options=options)
        except FileNotFoundError:
            return False
        if found.attributes.get(MARK) != mark:
            raise Exists(f"object {name} exists already", name=name)
        return True

    def get(self, name: str) -> bytes:
        """Return an object's bytes; see Storage."""
        base.check_name(name)
        return self._read(
            name, lambda options: obstore.get(self._store, name, options=options).bytes().to_bytes()
        )

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return part of an object; see Storage."""
        base.check_name(name)
        if length == 0:  # HTTP has no empty range
            if self.size(name) < offset:
                raise object_errors.truncated(name, offset)
            return b""

        def get(options: "GetOptions") -> bytes:
            if "version" not in options:
                found = obstore.get_range(self._store, name, start=offset, length=length)
                return found.to_bytes()
            options = {**options, "range": (offset, offset + length)}
            return obstore.get(self._store, name, options=options).bytes().to_bytes()

        data = self._read(name, get, end=offset + length)
        if len(data) != length:
            raise object_errors.truncated(name, offset + length)
        return data

    def map(self, name: str) -> memoryview:
        """Return a view of a copy on disk, which has no name and goes with the view; see Storage.

        Raises NoSpace, kind `temporary-full`, where the copy does not fit.
        """
        base.check_name(name)
        with tempfile.TemporaryFile() as file:
            size = self._read(name, lambda options: self._download(name, file, options))
            if size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))

    def _download(self, name: str, file: IO[bytes], options: "GetOptions") -> int:
        """Write an object to a file, from the file's start; return its size."""
        for part in self._begin(file, name, options):
            try:
                file.write(part)
                file.flush()
            except OSError as error:
                raise NoSpace(
                    f"cannot keep a copy of {name}: {error.strerror}",
                    kind="temporary-full",
                    hint="free space in the folder for temporary files, or set TMPDIR",
                    name=name,
                ) from error
        return file.tell()

    def _begin(self, file: IO[bytes], name: str, options: "GetOptions") -> Any:
        file.seek(0)
        file.truncate()
        found = obstore.get(self._store, name, options=options)
        return found.stream(min_chunk_size=STREAM_BYTES)

    def size(self, name: str) -> int:
        """Return an object's size; see Storage."""
        base.check_name(name)
        if name in self._counted:
            return self._size_behind(name)
        try:
            found = self._ask("head", name, lambda: obstore.head(self._store, name))
        except NotFound as error:
            if error.kind != "object-missing" or not self._versions():
                raise
            return self._size_behind(name)
        self._note_version(found["version"])
        return found["size"]

    def _size_behind(self, name: str) -> int:
        """Return the size of the version that counts, where it is not the newest."""
        versions = self._versions()
        assert versions is not None, "asked only of a bucket with versions"
        counted = versions.get_oldest(name)
        self._counted[name] = counted.id
        return counted.size

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield objects by name; see Storage.

        Raises ProtocolError, kind `storage-unfit`, where the store lists in another order.
        """
        folder = prefix.rpartition("/")[0]
        if folder:
            base.check_name(folder)
        if versions := self._versions():
            yield from self._list_counted(versions, prefix)
            return
        listing = _Listing(self._store, folder)
        is_last = False
        while not is_last:
            page = self._ask("list", prefix or "the bucket", listing.read_page)
            is_last = len(page) < PAGE_OBJECTS
            for found in page:
                if found.name <= listing.last:
                    raise ProtocolError(
                        f"the store lists {found.name} after {listing.last}",
                        kind="storage-unfit",
                        hint="only stores that list in the order of names can hold a repository",
                    )
                listing.last = found.name
                if found.name.startswith(prefix):
                    yield found

    def _list_counted(self, versions: S3Versions, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects of a bucket with versions, those behind delete markers too."""
        for found in versions.list_versions(prefix):
            counted = oldest(found)
            if counted is not None:
                if len(found) > 1:
                    self._counted[counted.name] = counted.id
                yield StoredObject(counted.name, counted.size)

    def list_top(self) -> list[str]:
        """Return the first parts of all names; see Storage."""
        if versions := self._versions():
            return sorted({one.name.partition("/")[0] for one in self._list_counted(versions, "")})
        found = self._ask("list", "the bucket", lambda: obstore.list_with_delimiter(self._store))
        return sorted([*found["common_prefixes"], *(one["path"] for one in found["objects"])])

    def delete(self, name: str) -> None:
        """Remove an object; see Storage. Two requests, since S3 does not tell what was missing.

        Where a bucket keeps versions, all of them go: a marker alone would free nothing.
        """
        self.size(name)
        if versions := self._versions():
            versions.delete(name)
            self._counted.pop(name, None)
            return

        def delete() -> None:
            # An earlier try did it, or somebody else between these two requests.
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, name)

        self._ask("delete", name, delete)

    def tidy(self) -> int:
        """Return 0: puts are whole or nothing, without parts that a crash could leave."""
        return 0

    def capacity(self) -> Capacity | None:
        """Return None: a bucket has no size."""
        return None

    def listing_seconds(self) -> float:
        """Return 0: that a store lists what was put before is part of its trial."""
        return 0.0

    def locks(self) -> Locks | None:
        """Return the bucket's locks; whether it has any, `require` asks. None but on S3."""
        return self._bucket

    def close(self) -> None:
        """Do nothing: the library ends its connections when they are idle."""

    def _ask(
        self,
        kind: str,
        name: str,
        call: Callable[[], T],
        *,
        end: int | None = None,
        is_counted: bool = True,
    ) -> T:
        """Make a request, again where that may help; raise the last try's error of ours.

        Args:
            kind: what to count it as.
            name: what it is about.
            call: makes one try.
            end: where the range ends that is asked for.
            is_counted: whether each try is one request of the kind; else the call counts its own.
        """
        last = time.monotonic() + self._limits.seconds
        number = 1
        while True:
            if is_counted:
                self._count(kind)
            try:
                with self._slots:
                    return call()
            except (BaseError, FileNotFoundError) as error:
                trouble, transient = object_errors.translate(error, kind, name, end=end)
                if not transient or number >= self._limits.tries or time.monotonic() >= last:
                    trouble.fields["tries"] = number
                    raise trouble from error
            self._count("retry")
            time.sleep(self._pause(number))
            number += 1

    def _pause(self, number: int) -> float:
        """Return how long to wait after a try: half of it by chance, so that callers part."""
        longest = min(
            self._limits.pause_seconds * 2.0 ** (number - 1), self._limits.pause_seconds_max
        )
        return longest * _RANDOM.uniform(0.5, 1.0)

    def _count(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1


class _Listing:
    """Pages of a listing; after a failure it goes on behind the last name that was taken."""

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self.last = ""
        self._store = store
        self._folder = folder or None
        self._stream: Any = None

    def read_page(self) -> list[StoredObject]:
        """Return the next objects; fewer than a page at the end."""
        try:
            if self._stream is None:
                self._stream = obstore.list(
                    self._store, self._folder, offset=self.last or None, chunk_size=PAGE_OBJECTS
                )
            page = next(self._stream, ())
        except BaseException:
            self._stream = None
            raise
        return [StoredObject(one["path"], one["size"]) for one in page]
