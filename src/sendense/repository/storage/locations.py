"""Where a repository lies: a folder's path, or the URL of a place in an object store.

    s3://bucket/prefix?endpoint=https://s3.example.com&region=eu-central-1
    az://container/prefix?account=name
    gs://bucket/prefix

Credentials are never part of a URL; they come from the environment, by the names that the stores'
own tools use: AWS_…, AZURE_… and GOOGLE_….
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import SplitResult, parse_qsl, urlsplit

from sendense.core.errors import Invalid
from sendense.repository.storage import base
from sendense.repository.storage.base import Storage
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.object_errors import CONNECT_SECONDS_MAX
from sendense.repository.storage.s3_versions import S3Versions

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, ObjectStore, RetryConfig, S3Config

    from sendense.repository.storage.object_store import Limits

LOCATION_LENGTH_MAX = 2048
_OPTIONS = {
    "s3": frozenset({"endpoint", "region"}),
    "az": frozenset({"endpoint", "account"}),
    "gs": frozenset[str](),
}
_AZURE = {"account": "account_name", "endpoint": "endpoint"}  # as the library calls them
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in an object store.

    Attributes:
        scheme: `s3`, `az` or `gs`.
        bucket: or container.
        prefix: of all names, without slashes at its ends; "" for the whole bucket.
        options: what the URL says beside that.
    """

    scheme: str
    bucket: str
    prefix: str
    options: dict[str, str]

    @property
    def is_plain(self) -> bool:
        """Whether it is reached without TLS."""
        return self.options.get("endpoint", "").startswith("http://")


def is_url(location: str) -> bool:
    """Return whether a location is the URL of an object store, and not a path."""
    return "://" in location


def parse(url: str) -> Place:
    """Return the place that a URL names. Raises Invalid, kind `repository-location-invalid`."""
    if len(url) > LOCATION_LENGTH_MAX:
        raise _invalid("it is too long", "")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _invalid(str(error), "") from None
    if parts.scheme not in _OPTIONS:
        raise _invalid(f"{parts.scheme}:// is not known", "s3://, az:// and gs:// are")
    if "@" in parts.netloc:
        raise _invalid("a URL holds no credentials", "set them in the program's environment")
    if not _BUCKET.fullmatch(parts.netloc):
        raise _invalid(f"{parts.netloc!r} is no name of a bucket", "s3://bucket/prefix is the form")
    prefix = parts.path.strip("/")
    if prefix:
        base.check_name(prefix)
    if parts.fragment:
        raise _invalid("a URL has no part behind #", "")
    return Place(parts.scheme, parts.netloc, prefix, _parse_options(parts))


def _parse_options(parts: SplitResult) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS[parts.scheme] or name in options:
            known = ", ".join(sorted(_OPTIONS[parts.scheme])) or "none"
            raise _invalid(
                f"option {name[:64]!r} is not known, or is given twice",
                f"{parts.scheme}:// takes {known}",
            )
        _check_option(name, value)
        options[name] = value
    return options


def _check_option(name: str, value: str) -> None:
    if name != "endpoint":
        if not _WORD.fullmatch(value):
            raise _invalid(f"{value[:64]!r} is no {name}", "")
        return
    endpoint = urlsplit(value)
    if (
        endpoint.scheme not in {"http", "https"}
        or not endpoint.hostname
        or "@" in endpoint.netloc
        or endpoint.query
        or endpoint.fragment
    ):
        raise _invalid("the endpoint is no address", "https://host:port is the form")


def _invalid(reason: str, hint: str) -> Invalid:
    return Invalid(
        f"the repository's URL cannot be used: {reason}",
        kind="repository-location-invalid",
        hint=hint,
    )


def open_storage(location: str) -> Storage:
    """Open what a location names: a folder, which must exist, or a place in an object store.

    An object store is not contacted yet. Raises Invalid (kind `repository-location-invalid`), and
    what LocalStorage raises.
    """
    if not is_url(location):
        return LocalStorage(Path(location).absolute())
    return open_place(parse(location))


def open_place(place: Place) -> Storage:
    """Open a place in an object store, without contacting it."""
    # Loaded only for an object store: the library takes longer than the rest of a command.
    from sendense.repository.storage.object_store import Limits, ObjectStorage

    limits = Limits()
    store = connect(place, request_seconds=limits.request_seconds)
    return ObjectStorage(store, limits=limits, versions=_versions_of(place, limits))


def _versions_of(place: Place, limits: "Limits") -> S3Versions | None:
    """Return what knows of versions; of those of the other stores nothing does."""
    if place.scheme != "s3":
        return None
    return S3Versions(
        place.bucket, place.prefix, place.options, request_seconds=limits.request_seconds
    )


def connect(place: Place, *, request_seconds: float) -> "ObjectStore":
    """Return the library's store of a place, which repeats nothing by itself.

    Raises Denied, kind `repository-denied`, where credentials or the account are missing.
    """
    from obstore.exceptions import BaseError

    from sendense.repository.storage import object_errors

    try:
        return _build(place, request_seconds)
    except BaseError as error:
        raise object_errors.unset(error) from error


def _build(place: Place, request_seconds: float) -> "ObjectStore":
    from obstore.store import AzureStore, GCSStore, S3Store

    client: ClientConfig = {
        "timeout": timedelta(seconds=request_seconds),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS_MAX),
        "allow_http": place.is_plain,
    }
    retries: RetryConfig = {"max_retries": 0}
    prefix = place.prefix or None
    options = place.options
    if place.scheme == "s3":
        return S3Store(
            place.bucket,
            prefix=prefix,
            client_options=client,
            retry_config=retries,
            config=cast(
                "S3Config",
                {
                    **options,
                    "checksum_algorithm": "SHA256",
                    "conditional_put": "etag",
                    # Several of those that speak S3 know no other deletion.
                    "disable_bulk_delete": True,
                },
            ),
        )
    if place.scheme == "az":
        return AzureStore(
            place.bucket,
            prefix=prefix,
            client_options=client,
            retry_config=retries,
            config=cast("AzureConfig", {_AZURE[name]: value for name, value in options.items()}),
        )
    return GCSStore(place.bucket, prefix=prefix, client_options=client, retry_config=retries)
