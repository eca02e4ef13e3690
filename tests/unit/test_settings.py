from pathlib import Path

import pytest
from pydantic import ValidationError

from sendense.settings import Settings, is_loopback


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SENDENSE_{name.upper()}", raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_without_accounts_a_loopback_address_is_served(host: str) -> None:
    assert Settings(no_auth=True, host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example", "", "127.0.0.1.evil"])  # noqa: S104 - the test is that it is refused
def test_without_accounts_nothing_else_is_served_ever(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValidationError, match="loopback"):
        Settings(no_auth=True, host=host)


def test_databases_lie_in_the_data_directory_unless_named(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.catalog_url == f"sqlite:///{tmp_path}/catalog.sqlite"
    assert settings.jobs_url == f"sqlite:///{tmp_path}/engine.sqlite"
    named = Settings(data_dir=tmp_path, database_url="sqlite:////x", engine_url="sqlite:////y")
    assert (named.catalog_url, named.jobs_url) == ("sqlite:////x", "sqlite:////y")


def test_options_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_DATA_DIR", "/srv/data")
    monkeypatch.setenv("SENDENSE_ALLOWED_DIRS", "/a:/b")
    monkeypatch.setenv("SENDENSE_LEASE_SECONDS", "6")
    settings = Settings()
    assert settings.data_dir == Path("/srv/data")
    assert settings.allowed_dirs == (Path("/a"), Path("/b"))
    assert settings.lease_seconds == 6.0


def test_relative_folders_are_meant_from_here() -> None:
    settings = Settings(data_dir=Path("data"), allowed_dirs=(Path("x"),))
    assert settings.data_dir == Path.cwd() / "data"
    assert settings.allowed_dirs == (Path.cwd() / "x",)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "65536"), ("port", "-1"), ("lease_seconds", "0"), ("log_level", "loud")],
)
def test_impossible_options_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"SENDENSE_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_every_option_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
