import socket
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


def test_the_engine_follows_a_catalog_on_postgresql_and_no_other(tmp_path: Path) -> None:
    url = "postgresql://sendense@db1/sendense"
    assert Settings(data_dir=tmp_path, database_url=url).jobs_url == url
    own = f"sqlite:///{tmp_path}/engine.sqlite"
    mariadb = "mysql+pymysql://sendense@db1/sendense"
    assert Settings(data_dir=tmp_path, database_url=mariadb).jobs_url == own
    assert Settings(data_dir=tmp_path, database_url=url, engine_url=own).jobs_url == own


def test_a_worker_has_its_host_as_a_label_and_those_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings().worker_labels_with_host == {"host": socket.gethostname()}
    monkeypatch.setenv("SENDENSE_WORKER_LABELS", "site=berlin, storage=nas1,")
    given = Settings().worker_labels_with_host
    assert given == {"host": socket.gethostname(), "site": "berlin", "storage": "nas1"}
    named = Settings(worker_labels=["host=nas7"])  # type: ignore[arg-type] # as options give it
    assert named.worker_labels_with_host == {"host": "nas7"}


@pytest.mark.parametrize("labels", ["site", "Site=x", ",".join(f"k{n}=x" for n in range(8))])
def test_labels_that_nobody_could_demand_are_refused(labels: str) -> None:
    with pytest.raises(ValidationError, match="worker_labels"):
        Settings(worker_labels=labels)  # type: ignore[arg-type] # as the environment gives it


def test_a_database_that_cannot_hold_the_catalog_is_refused_without_its_password() -> None:
    with pytest.raises(ValidationError, match="cannot be kept in oracle") as caught:
        Settings(database_url="oracle://sendense:secret-word@db1/sendense")
    assert "secret-word" not in str(caught.value)
    settings = Settings(database_url="mysql+pymysql://sendense:secret-word@db1/sendense")
    assert "secret-word" not in repr(settings)
