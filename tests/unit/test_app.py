import logging
from pathlib import Path

import pytest
from pydantic import SecretStr

from sendense import app
from sendense.core.ids import SystemIds
from sendense.hub.keyfile import SYSTEMD_NAME
from sendense.settings import Settings


def test_an_allowed_directory_that_is_not_there_is_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, away = tmp_path / "there", tmp_path / "away"
    there.mkdir()
    with caplog.at_level(logging.WARNING, logger="sendense.app"):
        paths = app.create_paths(Settings(data_dir=tmp_path / "data", allowed_dirs=(there, away)))
    assert [record.args for record in caplog.records] == [(away,)]
    assert paths.resolve(str(away / "later.raw")) == away / "later.raw", "it may come later"


def test_the_key_of_the_credentials_is_looked_for_where_settings_and_systemd_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, named, of_systemd = "ab" * 32, "cd" * 32, "ef" * 32
    (tmp_path / "named").touch(mode=0o600)
    (tmp_path / "named").write_text(named)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)

    def find(**settings: object) -> str:
        found = Settings(data_dir=tmp_path, **settings)  # type: ignore[arg-type] # each line's own
        return app.create_key_places(found, SystemIds()).read().secret.value.hex()

    assert find(credentials_key_file=tmp_path / "named") == named
    assert find(credentials_key_file=tmp_path / "named", credentials_key=SecretStr(given)) == given
    (tmp_path / SYSTEMD_NAME).touch(mode=0o600)
    (tmp_path / SYSTEMD_NAME).write_text(of_systemd)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert find(credentials_key=SecretStr(given)) == of_systemd


def test_settings_show_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_CREDENTIALS_KEY", "ab" * 32)
    monkeypatch.setenv("SENDENSE_CREDENTIALS_KEY_FILE", "")
    settings = Settings()
    assert settings.credentials_key.get_secret_value() == "ab" * 32
    assert "abab" not in repr(settings) + settings.model_dump_json()
    assert settings.credentials_key_file is None
