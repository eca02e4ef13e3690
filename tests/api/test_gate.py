import asyncio
import http.client
import json
import threading
import time
from typing import Any

import pytest
from starlette.types import Message

from sendense.api import health
from sendense.api.gate import BODY_BYTES_MAX, Gate
from sendense.core.errors import Unavailable
from tests.api.kit import Lab, check_problem
from tests.servers.process import wait_until

WAIT_SECONDS = 30  # a deadline for what hangs, not a time it takes


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8082", "127.0.0.1:1", "[::1]:8082", "LOCALHOST"]
)
def test_the_server_answers_for_loopback_names(lab: Lab, host: str) -> None:
    assert lab.api.get("/backups", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8082",
        "localhost.evil.example",
        "127.0.0.1.evil",
        "[::2]",
        "10.0.0.1",
        "",
    ],
)
def test_a_name_that_somebody_pointed_at_us_is_refused(lab: Lab, host: str) -> None:
    check_problem(lab.api.get("/backups", headers={"Host": host}), 403, "host-not-allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_can_change_nothing(lab: Lab, headers: dict[str, str]) -> None:
    repository_id = lab.add_repository()
    for method, path in (
        ("DELETE", f"/repositories/{repository_id}"),
        ("PATCH", f"/repositories/{repository_id}"),
        ("POST", f"/repositories/{repository_id}/check"),
    ):
        answer = lab.api.request(method, path, headers=headers)
        check_problem(answer, 403, "origin-not-allowed")
    assert lab.api.get("/jobs").json()["total"] == 0


def test_our_own_pages_may_change_something(lab: Lab) -> None:
    origin = str(lab.served.url)
    answer = lab.api.post(
        f"/repositories/{lab.add_repository()}/test",
        headers={"Origin": origin, "Sec-Fetch-Site": "same-origin"},
    )
    assert answer.status_code == 200


def test_no_answer_allows_another_origin_to_read_it(lab: Lab) -> None:
    for answer in (
        lab.api.get("/backups", headers={"Origin": "http://evil.example"}),
        lab.api.options(
            "/backups",
            headers={
                "Origin": "http://evil.example",
                "Access-Control-Request-Method": "POST",
            },
        ),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_body_that_is_not_declared_as_json_is_refused(lab: Lab, media_type: str) -> None:
    headers = {"Content-Type": media_type}
    answer = lab.api.post("/backups", content=b"{}", headers=headers)
    check_problem(answer, 415, "body-not-json")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{'a': 1}",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b'\xef\xbb\xbf{"a": 1}',
    ],
)
def test_a_body_that_is_no_json_is_refused(lab: Lab, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for method, path in (("POST", "/backups"), ("PATCH", "/vms/x"), ("POST", "/jobs/x/cancel")):
        answer = lab.api.request(method, path, content=content, headers=headers)
        check_problem(answer, 400, "malformed-json")


@pytest.mark.parametrize("content", ["null", "[]", '"text"', "7", "true"])
def test_json_of_another_shape_is_refused(lab: Lab, content: str) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = lab.api.post("/backups", content=content, headers=headers)
    check_problem(answer, 422, "fields-invalid")


def test_a_body_at_its_limit_is_read_and_a_byte_more_is_refused(lab: Lab) -> None:
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"x": ""})
    whole = body[:-2] + "y" * (BODY_BYTES_MAX - len(body)) + body[-2:]
    assert len(whole) == BODY_BYTES_MAX
    answer = lab.api.post("/backups", content=whole, headers=headers)
    check_problem(answer, 422, "fields-invalid")
    answer = lab.api.post("/backups", content=whole + " ", headers=headers)
    check_problem(answer, 413, "body-too-large")


def test_a_body_without_a_declared_length_is_bounded_too(lab: Lab) -> None:
    connection = http.client.HTTPConnection(lab.served.url.removeprefix("http://"))
    parts = [b"x" * 65536] * (BODY_BYTES_MAX // 65536 + 1)
    connection.request(
        "POST",
        "/api/v1/backups",
        body=iter(parts),
        headers={"Content-Type": "application/json"},
        encode_chunked=True,
    )
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()


def test_a_body_that_trickles_is_not_waited_for() -> None:
    sent: list[Message] = []

    async def refuse(*_: Any) -> None:
        raise AssertionError("nothing gets through")

    async def receive() -> Message:
        if sent_parts.pop():
            return {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.Event().wait()  # for ever
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        sent.append(message)

    sent_parts = [False, True]
    gate = Gate(refuse, hosts=["localhost"], policies={}, body_seconds_max=0.01)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/backups", "headers": headers}
    asyncio.run(gate(scope, receive, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["type"] == "urn:sendense:problem:body-too-slow"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nothing", 404, "path-unknown"),
        ("GET", "/backups/", 404, "path-unknown"),
        ("PUT", "/backups", 405, "method-not-allowed"),
        ("DELETE", "/jobs/x", 405, "method-not-allowed"),
        ("POST", "/backups/x", 405, "method-not-allowed"),
    ],
)
def test_the_frameworks_own_refusals_look_the_same(
    lab: Lab, method: str, path: str, status: int, kind: str
) -> None:
    check_problem(lab.api.request(method, path), status, kind)


def test_a_bug_is_told_without_its_details(lab: Lab) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret-detail")

    lab.replace_hub(check_source=broken)
    answer = lab.api.post("/sources", json={"name": "a", "type": "image", "config": {}})
    check_problem(answer, 500, "internal-error")
    assert "secret" not in answer.text


def test_a_catalog_that_does_not_answer_is_no_bug(lab: Lab) -> None:
    from sendense.db.catalog import Catalog

    gone = Catalog(f"sqlite:///{lab.data_dir}/nowhere/catalog.sqlite")
    lab.replace_hub(catalog=gone)
    check_problem(lab.api.get("/backups"), 503, "catalog-unavailable")
    check_problem(lab.api.get("/health"), 503, "unhealthy")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/vms", 200), ("/health", 200), ("/backups/none", 404), ("/restores/x/cancel", 405)],
)
def test_head_is_answered_as_get_is_without_the_body(lab: Lab, path: str, status: int) -> None:
    head, get = lab.api.head(path), lab.api.get(path)
    assert head.status_code == get.status_code == status
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if "request_id" not in get.text:  # which differs, but not in its length
        assert head.headers["content-length"] == get.headers["content-length"]
    scraped = lab.api.get(f"{lab.served.url}/metrics").text
    assert 'method="HEAD"' in scraped


def test_head_of_what_never_ends_ends_at_once(lab: Lab) -> None:
    answer = lab.api.head("/jobs/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    feeds = lab.served.app.state.listeners._feeds
    wait_until(lambda: len(feeds) == 0, WAIT_SECONDS, "its listener to be forgotten")


# Health.


def test_a_healthy_hub_says_so_at_all_three_places(lab: Lab) -> None:
    repository_id = lab.add_repository()
    for url in ("/health", "/debug/health", f"{lab.served.url}/health"):
        body = lab.api.get(url).json()
        assert body["status"] == "ok"
        assert body["version"]
        assert body["database"] == "ok"
        assert body["workers_alive"] == 1
        assert body["repositories"][0]["repository_id"] == repository_id
        assert body["oldest_waiting_job_at"] is None
        assert body["problems"] == []


def test_what_is_wrong_is_named(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    lab.start_backup(repository_id)
    lab.replace_hub(list_workers=lambda _session: [])
    folder = lab.data_dir / "backups" / "main"
    folder.rename(folder.with_name("away"))
    document = check_problem(lab.api.get("/health"), 503, "unhealthy")
    assert document["workers_alive"] == 0
    assert document["oldest_waiting_job_at"].startswith("2026-01-01")
    assert document["problems"] == [
        "no worker is alive",
        "repository main: repository main is not there",
    ]


def test_a_disabled_repository_does_not_make_the_hub_ill(lab: Lab) -> None:
    repository_id = lab.add_repository()
    lab.api.patch(f"/repositories/{repository_id}", json={"enabled": False})
    folder = lab.data_dir / "backups" / "main"
    folder.rename(folder.with_name("away"))
    assert lab.api.get("/health").status_code == 200


def test_health_waits_once_however_many_repositories_hang(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ANSWER_SECONDS_MAX", 0.5)
    for number in range(16):
        lab.add_repository(f"main{number}")
    released = threading.Event()

    def hang(*_: Any) -> Any:
        assert released.wait(WAIT_SECONDS)
        raise Unavailable("the server of this storage does not answer")

    lab.replace_hub(open_storage=hang)
    started = time.monotonic()
    try:
        document = check_problem(lab.api.get("/health"), 503, "unhealthy")
    finally:
        released.set()
    # One wait for each would be 8 s; the rest is for a busy machine.
    assert time.monotonic() - started < 5
    assert len(document["problems"]) == 16
