"""What obstore does not know of S3: versions of objects, and locks on them. By botocore.

Objects of a repository are written once, so of a name with several versions the oldest counts: an
attacker can put newer ones and delete markers, and with a lock on it not remove the oldest.
"""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from sendense.core.errors import Denied, ProtocolError, SendenseError
from sendense.repository.storage import locks, object_errors
from sendense.repository.storage.locks import LockMode, cannot_lock

TRIES = 10  # by the library's own rules, with pauses that double
PAGE = 1000  # what S3 answers at most for one request
# What S3 answers of objects without a lock, and of buckets that cannot lock.
_UNLOCKED = frozenset({"NoSuchObjectLockConfiguration", "InvalidRequest"})
_PERMISSIONS = {
    "get_bucket_versioning": "s3:GetBucketVersioning",
    "get_object_lock_configuration": "s3:GetBucketObjectLockConfiguration",
    "list_object_versions": "s3:ListBucketVersions",
    "delete_object": "s3:DeleteObjectVersion",
    "get_object_retention": "s3:GetObjectRetention",
    "put_object_retention": "s3:PutObjectRetention",
}
_MARKERS = ("KeyMarker", "VersionIdMarker")
_UNKNOWN_REQUEST = "NotImplemented"
_NO_LOCKS = "ObjectLockConfigurationNotFoundError"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object, or a marker that hides those before it."""

    name: str
    id: str
    is_marker: bool
    size: int


class S3Versions:
    """Versions and locks below a prefix of a bucket. Contacts nothing when it is made."""

    def __init__(
        self, bucket: str, prefix: str, options: dict[str, str], *, request_seconds: float
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = options
        self._seconds = request_seconds

    @functools.cached_property
    def _client(self) -> Any:
        # Loaded only where there are versions: it takes a third of a second.
        import botocore.session
        from botocore.config import Config

        endpoint = self._options.get("endpoint")
        return botocore.session.get_session().create_client(
            "s3",
            region_name=self._options.get("region"),
            endpoint_url=endpoint,
            verify=os.environ.get("SSL_CERT_FILE"),  # as obstore reads it
            config=Config(
                connect_timeout=object_errors.CONNECT_SECONDS_MAX,
                read_timeout=self._seconds,
                retries={"mode": "standard", "total_max_attempts": TRIES},
                signature_version="s3v4",
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )

    def is_versioned(self) -> bool | None:
        """Return whether the bucket keeps versions; None where it does not tell, now or ever."""
        try:
            found = self._ask("get_bucket_versioning", "the bucket")
        except SendenseError as error:
            return False if error.fields.get("code") == _UNKNOWN_REQUEST else None
        return found.get("Status") in {"Enabled", "Suspended"}

    def list_versions(self, prefix: str) -> Iterator[list[Version]]:
        """Yield the versions of each name that starts with a prefix, newest first, by name."""
        pages = self._read_pages(self._prefix + prefix, prefix or "the bucket")
        for _, versions in groupby(pages, key=attrgetter("name")):
            yield list(versions)

    def _read_pages(self, prefix: str, name: str) -> Iterator[Version]:
        markers: dict[str, str] = {}
        while True:
            page = self._ask("list_object_versions", name, Prefix=prefix, MaxKeys=PAGE, **markers)
            yield from self._read_page(page)
            if not page.get("IsTruncated"):
                return
            before = markers
            markers = {key: page["Next" + key] for key in _MARKERS if page.get("Next" + key)}
            if markers == before:
                raise ProtocolError(
                    f"the store lists the versions from {markers} on again and again",
                    kind="storage-unfit",
                )

    def _read_page(self, page: Any) -> list[Version]:
        """Return a page's versions and markers, which come apart, by name and newest first."""
        found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        # Of the same second, the latest is the newest; of others nothing but it matters.
        found.sort(key=lambda one: (one["LastModified"], one["IsLatest"]), reverse=True)
        found.sort(key=lambda one: one["Key"])
        return [
            Version(
                one["Key"][len(self._prefix) :], one["VersionId"], "Size" not in one,
                one.get("Size", 0),
            )
            for one in found
        ]  # fmt: skip

    def list_of(self, name: str) -> list[Version]:
        """Return the versions of one name, newest first."""
        for versions in self.list_versions(name):
            return versions if versions[0].name == name else []
        return []

    def get_oldest(self, name: str) -> Version:
        """Return the version of a name that counts. Raises NotFound."""
        found = oldest(self.list_of(name))
        if found is None:
            raise object_errors.missing(name)
        return found

    def delete(self, name: str) -> None:
        """Remove all versions of a name and all markers, the one that counts last.

        Raises NotFound, and Denied (kind `object-locked`) where it is locked: then all is there; or
        where a newer one is, which somebody else has put there.
        """
        versions = self.list_of(name)
        counted = oldest(versions)
        if counted is None:
            raise object_errors.missing(name)
        until = self._find_until(counted)
        if until is not None and until > datetime.now(UTC):
            raise locks.locked(name, until)
        for version in sorted(versions, key=lambda one: one.id == counted.id):
            try:
                self._ask("delete_object", name, **self._address(version))
            except Denied as error:
                until = self._find_until(version)
                if until is None or until <= datetime.now(UTC):
                    raise
                raise locks.locked(name, until) from error

    # Locks.

    def require(self, mode: LockMode) -> None:
        """Ask the bucket; see Locks."""
        if mode is LockMode.ATTRIBUTE:
            raise cannot_lock(mode, "it is a bucket", "`governance` and `compliance` lock buckets")
        try:
            found = self._ask("get_object_lock_configuration", "the bucket")
        except SendenseError as error:
            if error.fields.get("code") != _NO_LOCKS:
                raise
            found = {}
        if found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            raise cannot_lock(
                mode,
                "the bucket was made without object lock",
                "make one with it: `aws s3api create-bucket --object-lock-enabled-for-bucket`",
            )

    def lock(self, name: str, mode: LockMode, until: datetime) -> None:
        """Lock the version that counts; see Locks."""
        counted = self.get_oldest(name)
        current = self._find_until(counted)
        if current is None or current < until:
            self._ask(
                "put_object_retention",
                name,
                **self._address(counted),
                Retention={"Mode": mode.upper(), "RetainUntilDate": until},
            )

    def locked_until(self, name: str) -> datetime | None:
        """Return until when the version that counts is locked; see Locks."""
        return self._find_until(self.get_oldest(name))

    def _find_until(self, version: Version) -> datetime | None:
        try:
            found = self._ask("get_object_retention", version.name, **self._address(version))
        except SendenseError as error:
            if error.fields.get("code") in _UNLOCKED:
                return None
            raise
        until: datetime = found["Retention"]["RetainUntilDate"]
        return until.astimezone(UTC)

    def _address(self, version: Version) -> dict[str, str]:
        return {"Key": self._prefix + version.name, "VersionId": version.id}

    def _ask(self, operation: str, name: str, **parameters: Any) -> Any:
        """Make a request, by the library again where that may help; raise an error of ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **parameters)
        except ClientError as error:
            told = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise object_errors.translate_code(
                str(told.get("Code")), status, _PERMISSIONS[operation], name
            ) from error
        except BotoCoreError as error:
            raise object_errors.unavailable(name, str(error)) from error


def oldest(versions: list[Version]) -> Version | None:
    """Return the version that counts of those of a name, newest first."""
    return next((one for one in reversed(versions) if not one.is_marker), None)
