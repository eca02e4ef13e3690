"""Fixtures of a real S3 server; each test gets a prefix of its own in one bucket."""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest

from sendense.repository.storage import locations
from sendense.repository.storage.object_store import Limits, ObjectStorage
from tests.s3 import server
from tests.s3.proxy import Proxy
from tests.s3.server import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Server
from tests.vcsim.fixtures import require

VAULT = "vault"
IMPATIENT = Limits(request_seconds=30.0, pause_seconds=0.001, pause_seconds_max=0.01)


@pytest.fixture(scope="session")
def shared_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a process."""
    require(server.build)
    with Server(server.build(), tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3(shared_s3: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, and credentials for it in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return shared_s3


@pytest.fixture
def s3_url(s3: Server) -> str:
    """The URL of a place on the server where nothing lies yet."""
    return url_of(s3.endpoint)


def url_of(endpoint: str, bucket: str = BUCKET) -> str:
    """Return the URL of a new place in a bucket of a server."""
    return f"s3://{bucket}/{secrets.token_hex(8)}?endpoint={endpoint}"


@pytest.fixture
def bare_s3(s3: Server) -> Any:
    """A client that asks the server for whatever it is told."""
    return botocore.session.get_session().create_client("s3", endpoint_url=s3.endpoint)


@pytest.fixture
def vault_url(s3: Server, bare_s3: Any) -> str:
    """The URL of a new place in a bucket with versions and object lock."""
    with contextlib.suppress(bare_s3.exceptions.BucketAlreadyOwnedByYou):
        bare_s3.create_bucket(Bucket=VAULT, ObjectLockEnabledForBucket=True)
    return url_of(s3.endpoint, VAULT)


@pytest.fixture
def proxy(s3: Server) -> Iterator[Proxy]:
    """A server in front of the server, which fails as it is told."""
    with Proxy(s3.port) as running:
        yield running


@pytest.fixture
def behind_proxy(proxy: Proxy) -> ObjectStorage:
    """A storage behind the proxy that loses no time with waiting."""
    return open_impatient(url_of(proxy.endpoint))


def open_impatient(url: str) -> ObjectStorage:
    """Open a storage that tries as often as the real one and hardly waits in between."""
    store = locations.connect(locations.parse(url), request_seconds=IMPATIENT.request_seconds)
    return ObjectStorage(store, limits=IMPATIENT)
