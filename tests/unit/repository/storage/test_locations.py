"""Paths and URLs of repositories."""

from pathlib import Path

import pytest
from obstore.store import AzureStore, GCSStore, S3Store

from sendense.core.errors import Denied, Invalid, NotFound
from sendense.repository.storage import locations
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.locations import Place
from sendense.repository.storage.object_store import ObjectStorage

KEY = "bm90IGEgc2VjcmV0"  # "not a secret"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://backups", Place("s3", "backups", "", {})),
        ("s3://backups/", Place("s3", "backups", "", {})),
        (
            "s3://backups/a/b?endpoint=https://s3.example.com:9000&region=eu-central-1",
            Place(
                "s3",
                "backups",
                "a/b",
                {"endpoint": "https://s3.example.com:9000", "region": "eu-central-1"},
            ),
        ),
        ("az://vms/main?account=firm", Place("az", "vms", "main", {"account": "firm"})),
        ("gs://backups/main", Place("gs", "backups", "main", {})),
    ],
)
def test_a_url_names_a_place(url: str, place: Place) -> None:
    assert locations.is_url(url)
    assert locations.parse(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "s3://",
        "s3:///backups",
        "s3://[broken",
        "s3://key:secret@backups/x",
        "s3://UPPER/x",
        "s3://backups/x#y",
        "s3://backups?acount=firm",
        "s3://backups?region=a&region=b",
        "s3://backups?region=",
        "s3://backups?region=eu%20central",
        "s3://backups?endpoint=ftp://example.com",
        "s3://backups?endpoint=https://",
        "s3://backups?endpoint=https://key:secret@example.com",
        "s3://backups?endpoint=https://example.com%3Fx%3D1",
        "s3://backups?endpoint=https://example.com%23x",
        "gs://backups?region=europe",
        "s3://" + "a" * 3000,
    ],
)
def test_a_url_that_names_none_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        locations.parse(url)
    assert caught.value.kind == "repository-location-invalid"
    assert "secret" not in caught.value.message


def test_a_prefix_is_an_objects_name() -> None:
    for prefix in ("../up", "a//b", ".hidden", "ä"):
        with pytest.raises(Invalid):
            locations.parse(f"s3://backups/{prefix}")


def test_a_path_is_a_folder(tmp_path: Path) -> None:
    assert not locations.is_url(str(tmp_path))
    storage = locations.open_storage(str(tmp_path))
    assert isinstance(storage, LocalStorage)
    storage.close()
    with pytest.raises(NotFound):
        locations.open_storage(str(tmp_path / "missing"))


def test_only_an_endpoint_that_says_http_is_reached_without_tls() -> None:
    assert not locations.parse("s3://backups?endpoint=https://example.com").is_plain
    assert locations.parse("s3://backups?endpoint=http://example.com").is_plain


def test_each_scheme_has_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built only: no Azure and no Google were asked."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    s3 = _connect("s3://backups/a/b?endpoint=https://s3.example.com&region=eu-central-1")
    assert isinstance(s3, S3Store)
    assert s3.prefix == "a/b"
    assert s3.config == {
        "bucket": "backups",
        "endpoint": "https://s3.example.com",
        "region": "eu-central-1",
        "checksum_algorithm": "SHA256",
        "conditional_put": "etag",
        "disable_bulk_delete": "true",
    }
    azure = _connect("az://vms/main?account=firm")
    assert isinstance(azure, AzureStore)
    assert azure.prefix == "main"
    assert azure.config == {"account_name": "firm", "container_name": "vms"}
    google = _connect("gs://backups")
    assert isinstance(google, GCSStore)
    assert google.prefix is None
    for store in (s3, azure, google):
        assert store.retry_config is not None
        assert store.retry_config["max_retries"] == 0  # ours are counted and bounded


def test_an_account_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(Denied, match="Account must be specified"):
        _connect("az://vms/main")


def _connect(url: str) -> object:
    return locations.connect(locations.parse(url), request_seconds=10)


def test_a_url_is_opened_without_contacting_anybody() -> None:
    assert isinstance(locations.open_storage("gs://backups/main"), ObjectStorage)
