import json
import os
import tomllib
from pathlib import Path

import pytest

from sendense.cli import config_file, effective_settings, main, serve
from sendense.cli.effective_settings import Origin
from sendense.core.errors import Denied, Invalid, NotFound
from sendense.settings import LogLevel, Settings


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a configuration of its own."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SENDENSE_{name.upper()}", raising=False)
    monkeypatch.delenv(config_file.VARIABLE, raising=False)
    monkeypatch.setattr(config_file, "DEFAULT", tmp_path / "none.toml")


def _write(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "sendense.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_an_option_beats_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'port = 1111\nhost = "::1"\nlog_level = "debug"\nallowed_dirs = ["/srv", "/mnt"]\n'
    path = _write(tmp_path, text + '[worker_labels]\nsite = "berlin"\n')
    monkeypatch.setenv("SENDENSE_PORT", "2222")
    monkeypatch.setenv("SENDENSE_HOST", "127.0.0.2")
    settings, origins = effective_settings.read_with_origins(config=path, port=3333)
    assert (settings.port, origins["port"]) == (3333, Origin.OPTION)
    assert (settings.host, origins["host"]) == ("127.0.0.2", Origin.ENVIRONMENT)
    assert (settings.log_level, origins["log_level"]) == (LogLevel.DEBUG, Origin.FILE)
    assert (settings.lease_seconds, origins["lease_seconds"]) == (60.0, Origin.DEFAULT)
    assert settings.allowed_dirs == (Path("/srv"), Path("/mnt"))
    assert settings.worker_labels == {"site": "berlin"}


def test_the_servers_worker_finds_each_setting_of_the_servers_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"""
        data_dir = "{tmp_path}"
        database_url = "postgresql://db1/sendense"
        engine_url = "postgresql://db2/sendense"
        credentials_key = "{"0a" * 32}"
        credentials_key_file = "{tmp_path}/key"
        allowed_dirs = ["/srv", "/mnt"]
        lease_seconds = 30.5
        gc_every_hours = 12.0
        hub_export_every_hours = 6.0
        log_level = "debug"
        log_format = "text"
        log_levels = {{dbos = "info"}}
        worker_labels = {{site = "berlin"}}
    """
    of_server = effective_settings.read_settings(config=_write(tmp_path, text))
    for name, value in serve._worker_environment(of_server).items():
        monkeypatch.setenv(name, value)
    of_worker = effective_settings.read_settings()
    assert of_worker == of_server
    assert set(of_server.model_fields_set) >= Settings.model_fields.keys() - {
        *("host", "port", "no_auth")  # of the server alone
    }


def test_the_file_is_found_by_its_variable_and_else_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert effective_settings.read_settings().port == 8082
    path = _write(tmp_path, "port = 1\n")
    monkeypatch.setattr(config_file, "DEFAULT", path)
    assert effective_settings.read_settings().port == 1
    other = tmp_path / "other.toml"
    other.write_text("port = 2\n")
    monkeypatch.setenv(config_file.VARIABLE, str(other))
    assert effective_settings.read_settings().port == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1\n", "'prot' is no setting; 'port' is one"),
        ("zzz = 1\n", "'zzz' is no setting"),
        ("port = \n", "not valid"),
        ("port = 70000\n", "port: Input should be less than"),
        ('log_levels = "sendense.nbd"\n', "has no level"),
        ('[log_levels]\nx = "loud"\n', "log_levels"),
        ("x = '" + "a" * config_file.BYTES_MAX + "'", "larger than"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        effective_settings.read_settings(config=_write(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid, match="not valid"):
        config_file.read(path)


def test_a_named_file_must_be_there_and_readable(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no configuration file"):
        config_file.read(tmp_path / "none.toml")
    with pytest.raises(Denied, match="cannot read"):
        config_file.read(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    "text",
    [
        'database_url = "postgresql://sendense:hunter2@db/sendense"\n',
        'credentials_key = "hunter2"\n',
        'credentials_key = """\nhunter2"""\n',
    ],
)
def test_a_password_that_everybody_may_read_is_refused(tmp_path: Path, text: str) -> None:
    assert config_file.read(_write(tmp_path, text, 0o640))
    with pytest.raises(Denied, match="every user") as caught:
        config_file.read(_write(tmp_path, text, 0o644))
    assert "hunter2" not in str(caught.value)
    assert config_file.read(_write(tmp_path, "port = 1\n", 0o644)) == {"port": 1}


def test_a_file_that_everybody_may_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="may change"):
        config_file.read(_write(tmp_path, "port = 1\n", 0o646))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(Invalid, match="no regular file"):
        config_file.read(fifo)
    with pytest.raises(Invalid, match="no regular file"):
        config_file.read(Path("/dev/zero"))
    assert config_file.read(Path(os.devnull)) == {}


def test_a_file_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="nested too deeply"):
        config_file.read(_write(tmp_path, "a = " + "[" * 100_000))


def test_the_example_explains_each_setting_and_means_the_defaults() -> None:
    text = config_file.example()
    assert tomllib.loads(text) == {}
    names = set(Settings.model_fields)
    lines = [
        line.removeprefix("# ")
        for line in text.splitlines()
        if line.removeprefix("# ").partition(" = ")[0] in names
    ]
    assert len(lines) == len(names)
    assert Settings(**tomllib.loads("\n".join(lines))) == Settings()


def test_the_packaged_example_is_the_one_that_is_printed() -> None:
    packaged = Path(__file__).parents[3] / "packaging" / "sendense.toml"
    assert packaged.read_text() == config_file.example()


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    return int(ended.value.code or 0)


def test_show_tells_where_values_are_from_and_no_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, 'port = 1\nengine_url = "postgresql://u:hunter2@db/x"\n')
    assert _run("config", "show", "--json", "--config", str(path)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["port"] == {"value": 1, "origin": "file"}
    assert shown["host"]["origin"] == "default"
    assert shown["engine_url"]["value"] == "postgresql://u:***@db/x"
    assert _run("config", "show", "--config", str(path)) == 0
    assert "hunter2" not in capsys.readouterr().out


def test_check_says_what_is_wrong_and_what_was_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = _write(tmp_path, "port = 1\n")
    assert _run("config", "check", "--config", str(good)) == 0
    assert f"read {good}, 1 of" in capsys.readouterr().out
    assert _run("config", "check", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"file": None, "valid": True}
    bad = _write(tmp_path, "port = 'x'\n")
    assert _run("config", "check", "--config", str(bad)) == 2
    assert "port" in capsys.readouterr().err


def test_example_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("config", "example") == 0
    text = capsys.readouterr().out
    assert _run("config", "example", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"toml": text}
