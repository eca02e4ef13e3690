"""The API over HTTP: requests, answers, and failures a person can act on."""

import ipaddress
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx

from sendense.cli import failure

URL_DEFAULT = "http://127.0.0.1:8082"
_BASE_PATH = "/api/v1"
_CONNECT_SECONDS = (
    5.0  # a hub answers in milliseconds; beyond this it is another machine's firewall
)
_READ_SECONDS = 90.0  # testing a source or a capacity asks a platform, which may take a minute
_STARTS_MAX = 3  # a request with an idempotency key is safe to repeat; more would hide an outage
_PAGE_LENGTH = 200
_PAGES_MAX = 500  # 100,000 entries, the catalog's size in our benchmarks


@dataclass(frozen=True)
class Answer:
    """What the server said: the body as sent, and as data."""

    status: int
    text: str
    data: Any


class Api:
    """A client of one server. Close it, or use it in a `with`."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self.url = _normalise(url)
        headers = {"accept": "application/json", "user-agent": "sendense-cli"}
        if token:
            headers["authorization"] = f"Bearer {_check_token(token)}"
        self._client = httpx.Client(
            base_url=self.url + _BASE_PATH,
            headers=headers,
            timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
            # A proxy of the environment is for other machines; a redirect could take the token.
            trust_env=not is_loopback(self.url),
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, *path: str, **filters: object) -> Answer:
        """GET a path given in parts; filters that are None are left out."""
        query = {key: _to_query(value) for key, value in filters.items() if value is not None}
        return self._request("GET", path, query=query)

    def list_all(self, noun: str, **filters: object) -> Iterator[dict[str, Any]]:
        """Yield every entry of a collection, page by page."""
        seen = 0
        for _ in range(_PAGES_MAX):
            page = self.get(noun, limit=_PAGE_LENGTH, offset=seen, **filters).data
            entries = page.get(noun, [])
            yield from entries
            seen += len(entries)
            if not entries or seen >= page.get("total", 0):
                return

    def post(self, *path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """POST a body."""
        return self._request("POST", path, body=body or {})

    def start(self, *path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """POST something that starts work: repeated when the connection breaks, done once."""
        headers = {"idempotency-key": str(uuid.uuid4())}
        for _ in range(_STARTS_MAX - 1):
            try:
                return self._request("POST", path, body=body or {}, headers=headers, lost=True)
            except httpx.TransportError:
                continue
        return self._request("POST", path, body=body or {}, headers=headers)

    def patch(self, *path: str, body: Mapping[str, Any]) -> Answer:
        """PATCH with a body."""
        return self._request("PATCH", path, body=body)

    def delete(self, *path: str) -> Answer:
        """DELETE."""
        return self._request("DELETE", path)

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        lost: bool = False,
    ) -> Answer:
        """Send a request. Raises Failure; with `lost`, a broken connection's own error."""
        if wrong := [part for part in path if part in {"", ".", ".."}]:
            raise failure.usage(f"{wrong[0]!r} is not a name or an id")
        try:
            address = "/" + "/".join(quote(part, safe="") for part in path)
            content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise failure.usage("an argument is not valid UTF-8") from error
        sent_headers = dict(headers or {})
        if content is not None:
            sent_headers["content-type"] = "application/json"
        try:
            response = self._client.request(
                method, address, params=query or None, content=content, headers=sent_headers
            )
        except httpx.ConnectError as error:
            raise self._not_answering(error) from error
        except httpx.TransportError as error:
            if lost and not isinstance(error, httpx.TimeoutException):
                raise
            raise self._not_answering(error) from error
        return _read(response)

    def get_metrics(self) -> str:
        """Return the server's figures, in Prometheus's format. Raises Failure."""
        try:
            response = self._client.get(f"{self.url}/metrics", headers={"accept": "text/plain"})
        except httpx.TransportError as error:
            raise self._not_answering(error) from error
        if response.status_code != httpx.codes.OK:
            raise failure.from_response(response)
        return response.text

    def _not_answering(self, error: httpx.TransportError) -> failure.Failure:
        if isinstance(error, httpx.TimeoutException):
            return failure.unavailable(
                f"the server at {self.url} did not answer in time", hint="try again"
            )
        hint = (
            "is `sendense serve` running?" if is_loopback(self.url) else "see --url, SENDENSE_URL"
        )
        reason = re.sub(r"^\[Errno [^]]*\] ", "", str(error)).lower() or type(error).__name__
        return failure.unavailable(f"cannot reach the server at {self.url}: {reason}", hint=hint)


def is_loopback(url: str) -> bool:
    """Return whether a server's address is this machine."""
    host = httpx.URL(url).host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _normalise(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise failure.usage(f"the server's address {url!r} is not a URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise failure.usage(
            f"the server's address {url!r} is not an http or https URL", hint=f"as in {URL_DEFAULT}"
        )
    return str(parsed).rstrip("/").removesuffix(_BASE_PATH)


def _check_token(token: str) -> str:
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise failure.usage("the token holds characters that no token has")
    return token


def _to_query(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _read(response: httpx.Response) -> Answer:
    if response.status_code >= httpx.codes.BAD_REQUEST:
        raise failure.from_response(response)
    if response.status_code == httpx.codes.NO_CONTENT or not response.content:
        return Answer(response.status_code, "", None)
    cause: ValueError | None = None
    data: Any = None
    try:
        data = response.json()
    except ValueError as error:
        cause = error
    if response.status_code >= httpx.codes.MULTIPLE_CHOICES or not isinstance(data, dict):
        raise failure.unavailable(
            f"{response.url} did not answer as a Sendense server does",
            hint="see --url and SENDENSE_URL",
        ) from cause
    return Answer(response.status_code, response.text, data)
