import json
import os
import subprocess
import sys

import sendense
from tests.unit.cli.conftest import Hub, Run


def test_the_version_is_printed(run: Run) -> None:
    result = run("--version")
    assert (result.code, result.out) == (0, f"sendense {sendense.__version__}\n")


def test_an_unknown_command_is_a_usage_error_in_one_message(run: Run) -> None:
    result = run("vm", "lst")
    assert result.code == 2
    assert result.err.startswith("error: no such command 'lst'")
    assert "hint: see `sendense vm --help`" in result.err


def test_with_json_a_usage_error_is_json_on_stderr(run: Run) -> None:
    result = run("vm", "show", "--json")
    assert result.code == 2
    assert result.out == ""
    assert json.loads(result.err)["exit_code"] == 2


def test_a_server_that_is_not_there_is_unavailable_with_a_hint(run: Run) -> None:
    result = run("vm", "list", "--url", "http://127.0.0.1:1")
    assert result.code == 6
    assert "error: cannot reach the server at http://127.0.0.1:1" in result.err
    assert "hint: is `sendense serve` running?" in result.err


def test_an_address_that_is_no_url_is_a_usage_error(run: Run) -> None:
    for url in ("ftp://x", "127.0.0.1:8082", "http://", "http://[::1"):
        assert run("vm", "list", "--url", url).code == 2, url


def test_a_web_site_that_is_no_server_is_told_as_such(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/vms", "[]")
    result = run("vm", "list")
    assert result.code == 6
    assert "did not answer as a Sendense server does" in result.err


def test_a_redirect_is_not_followed_with_the_token(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/vms", {"vms": [], "total": 0}, status=307)
    assert run("vm", "list", "--token", "secret").code == 6
    assert len(hub.requests) == 1


def test_the_token_is_sent_as_bearer_and_never_shown(run: Run, hub: Hub) -> None:
    hub.refuse("GET", "/vms", 401, detail="token is not known")
    result = run("vm", "list", "--token", "s3cret")
    assert result.code == 5
    assert hub.requests[0].headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in result.out + result.err


def test_a_problem_is_shown_with_its_hint_fields_and_candidates(run: Run, hub: Hub) -> None:
    hub.refuse(
        "GET",
        "/vms",
        422,
        detail="the request is wrong",
        hint="mend it",
        errors=[
            {"field": "limit", "reason": "must be at most 1000"},
            {"field": "x", "reason": "is not a known field"},
        ],
        candidates=[{"id": "vm-1", "path": "/a"}, "vm-2"],
    )
    result = run("vm", "list")
    assert result.err.splitlines() == [
        "error: the request is wrong",
        "  limit: must be at most 1000",
        "  x: is not a known field",
        "  - id vm-1, path /a",
        "  - vm-2",
        "hint: mend it",
    ]


def test_with_json_a_problem_is_the_servers_own_document(run: Run, hub: Hub) -> None:
    hub.refuse("GET", "/vms", 409, detail="busy", extra=[1])
    result = run("vm", "list", "--json")
    assert (result.code, result.out) == (4, "")
    assert json.loads(result.err)["extra"] == [1]


def test_with_json_the_servers_body_is_printed_byte_for_byte(run: Run, hub: Hub) -> None:
    body = '{"vms":[ ],\n "total": 0, "é": "\\u001b"}'
    hub.answer("GET", "/vms", body)
    assert run("vm", "list", "--json").out == body + "\n"


def test_an_argument_that_is_not_utf8_is_a_usage_error(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/sources", {"sources": [], "total": 0})
    result = run("source", "add", "a\udcff", "--type", "image", "--vm", "a=/b")
    assert result.code == 2
    assert "not valid UTF-8" in result.err


def test_a_reader_that_goes_away_ends_the_program_quietly(hub: Hub) -> None:
    entries = [{"id": f"vm-{n}", "name": "n" * 200} for n in range(2_000)]
    hub.answer("GET", "/vms", {"vms": entries, "total": len(entries)})
    for extra in ([], ["--json"]):
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            [sys.executable, "-m", "sendense.cli.main", "vm", "list", "--url", hub.url, *extra],
            stdout=write_end,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(write_end)
        assert (done.returncode, done.stderr) == (141, b""), extra
