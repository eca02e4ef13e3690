"""What an object store may answer, and what becomes of it."""

import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from demo.vcenter.standin import make_certificate
from sendense.core.errors import (
    Corrupt,
    Denied,
    Exists,
    NoSpace,
    NotFound,
    ProtocolError,
    Unavailable,
)
from sendense.repository.storage import locations, object_store
from sendense.repository.storage.object_store import Limits, ObjectStorage
from tests.s3.fixtures import IMPATIENT, open_impatient
from tests.s3.proxy import Fault, Proxy
from tests.s3.server import BUCKET, Server


@pytest.mark.parametrize(
    "fault", [Fault.LOST, Fault.LATE, Fault.BUSY, Fault.SLOW_DOWN, Fault.CONFLICT]
)
def test_a_put_whose_answer_is_lost_succeeds_once(
    behind_proxy: ObjectStorage, proxy: Proxy, fault: Fault
) -> None:
    proxy.fail(fault, method="PUT")
    behind_proxy.put_if_absent("a", b"first")
    proxy.fail(fault, method="PUT")
    with pytest.raises(Exists):
        behind_proxy.put_if_absent("a", b"first")  # the same bytes, and yet not this put
    assert behind_proxy.get("a") == b"first"
    assert proxy.happened[fault] == 2


def test_a_large_put_whose_answer_is_lost_is_not_sent_again(
    behind_proxy: ObjectStorage, proxy: Proxy
) -> None:
    """The server refuses the name before it has read the body, and hangs up on who sends it."""
    large = bytes(16 << 20)
    proxy.fail(Fault.LOST, method="PUT")
    behind_proxy.put_if_absent("a", large)
    assert behind_proxy.requests == {"put": 1, "retry": 1, "head": 1}
    with pytest.raises(Exists):
        behind_proxy.put_if_absent("a", large)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.LOST])
def test_an_answer_that_ends_early_is_asked_for_again(
    behind_proxy: ObjectStorage, proxy: Proxy, fault: Fault
) -> None:
    data = bytes(range(256)) * 1000
    behind_proxy.put_if_absent("a", data)
    reads: list[Callable[[], bytes]] = [
        lambda: behind_proxy.get("a"),
        lambda: bytes(behind_proxy.map("a")),
        lambda: behind_proxy.get_range("a", 0, len(data)),
    ]
    for read in reads:
        proxy.fail(fault, method="GET")
        assert read() == data
    proxy.fail(fault, method="GET")
    assert [found.name for found in behind_proxy.list_objects()] == ["a"]
    assert proxy.happened[fault] == 4


def test_a_deletion_whose_answer_is_lost_succeeds(
    behind_proxy: ObjectStorage, proxy: Proxy
) -> None:
    behind_proxy.put_if_absent("a", b"x")
    proxy.fail(Fault.LOST, method="DELETE")
    behind_proxy.delete("a")
    assert proxy.happened[Fault.LOST] == 1
    with pytest.raises(NotFound):
        behind_proxy.delete("a")


def test_a_store_that_stays_busy_is_given_up_after_so_many_tries(
    behind_proxy: ObjectStorage, proxy: Proxy
) -> None:
    proxy.choose = lambda _: Fault.BUSY
    with pytest.raises(Unavailable, match="503 Service Unavailable") as caught:
        behind_proxy.get("a")
    assert caught.value.kind == "storage-failed"
    assert caught.value.fields["tries"] == proxy.happened[Fault.BUSY] == IMPATIENT.tries
    assert behind_proxy.requests == {"get": IMPATIENT.tries, "retry": IMPATIENT.tries - 1}


@pytest.mark.usefixtures("s3")
def test_no_try_begins_after_the_time_is_up() -> None:
    limits = Limits(tries=1000, seconds=0.05, pause_seconds=0.02, pause_seconds_max=0.02)
    place = locations.parse(f"s3://{BUCKET}?endpoint=http://127.0.0.1:9")  # nobody listens there
    storage = ObjectStorage(locations.connect(place, request_seconds=1), limits=limits)
    with pytest.raises(Unavailable, match="connection refused"):
        storage.size("a")
    assert 1 < storage.requests["head"] < 10


@pytest.mark.parametrize(
    ("fault", "group", "kind"),
    [
        (Fault.FULL, NoSpace, "repository-full"),
        (Fault.BROKEN, Unavailable, "storage-failed"),
    ],
)
def test_what_asking_again_does_not_help_is_asked_once(
    behind_proxy: ObjectStorage, proxy: Proxy, fault: Fault, group: type[Exception], kind: str
) -> None:
    proxy.fail(fault)
    with pytest.raises(group) as caught:
        behind_proxy.put_if_absent("a", b"x")
    error: Any = caught.value
    assert (error.kind, error.fields["tries"]) == (kind, 1)
    assert fault.name in error.message


def test_a_wrong_secret_is_denied_without_showing_what_was_signed(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage = open_impatient(s3_url)
    for call in (
        lambda: storage.put_if_absent("a", b"x"),
        lambda: storage.get("a"),
        lambda: storage.size("a"),
        lambda: list(storage.list_objects()),
    ):
        with pytest.raises(Denied) as caught:
            call()
        assert caught.value.kind == "repository-denied"
        assert "AWS4-HMAC" not in caught.value.message
        assert "sendense-tests" not in caught.value.message


def test_a_missing_bucket_is_told_from_a_missing_object(s3: Server) -> None:
    storage = open_impatient(f"s3://nobody-made-it?endpoint={s3.endpoint}")
    for call in (lambda: storage.put_if_absent("a", b"x"), storage.list_top):
        with pytest.raises(NotFound) as caught:
            call()
        assert caught.value.kind == "repository-missing"


def test_missing_credentials_are_named(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(Denied, match=r"no credentials.*AccessKeyId"):
        open_impatient(s3_url)
    # Without both, the library asks the machine's cloud; here that is an address of nobody.
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9/169.254.169.254")
    storage = open_impatient(s3_url)
    with pytest.raises(Denied, match="no credentials") as caught:
        storage.get("a")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert storage.requests["retry"] == 0


@pytest.mark.usefixtures("s3")
def test_a_certificate_that_nobody_trusts_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    certificate, key = make_certificate()
    (tmp_path / "both.pem").write_text(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        context.wrap_socket(listener, server_side=True) as server,
    ):

        def shake_hands() -> None:
            with contextlib.suppress(OSError):
                server.accept()

        thread = threading.Thread(target=shake_hands)
        thread.start()
        port = server.getsockname()[1]
        storage = open_impatient(f"s3://{BUCKET}?endpoint=https://127.0.0.1:{port}")
        with pytest.raises(Unavailable, match="certificate is not trusted") as caught:
            storage.size("a")
        thread.join()
    assert "SSL_CERT_FILE" in caught.value.hint
    assert storage.requests == {"head": 1}


def test_a_range_beyond_the_end_is_refused(s3_url: str) -> None:
    storage = open_impatient(s3_url)
    storage.put_if_absent("a", b"0123456789")
    for offset, length in ((10, 1), (50, 5), (8, 3), (11, 0)):
        with pytest.raises(Corrupt) as caught:
            storage.get_range("a", offset, length)
        assert caught.value.kind == "object-truncated"
    assert storage.get_range("a", 10, 0) == b""


def test_a_listing_of_many_pages_goes_on_after_a_failure(
    behind_proxy: ObjectStorage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PAGE_OBJECTS", 4)
    names = [f"many/{number:02}" for number in range(10)]
    for name in names:
        behind_proxy.put_if_absent(name, b"")
    listing = behind_proxy.list_objects("many/")
    found = [next(listing).name]
    proxy.fail(Fault.CUT)
    found += [one.name for one in listing]
    assert found == names


def test_a_store_that_lists_out_of_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ObjectStorage(MemoryStore())
    for name in ("a", "b"):
        storage.put_if_absent(name, b"")
    sorted_list = obstore.list

    def reversed_list(*arguments: Any, **options: Any) -> Any:
        return iter([list(page)[::-1] for page in sorted_list(*arguments, **options)])

    monkeypatch.setattr(obstore, "list", reversed_list)
    with pytest.raises(ProtocolError) as caught:
        list(storage.list_objects())
    assert caught.value.kind == "storage-unfit"


def test_a_copy_that_does_not_fit_is_no_space(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_impatient(s3_url)
    storage.put_if_absent("a", b"x" * 10)
    monkeypatch.setattr(tempfile, "TemporaryFile", _Full)
    with pytest.raises(NoSpace) as caught:
        storage.map("a")
    assert caught.value.kind == "temporary-full"
    assert storage.requests["retry"] == 0


class _Full:
    """A file on a full disk."""

    def __enter__(self) -> Any:
        self._file = Path("/dev/full").open("r+b", buffering=0)
        return _Unseekable(self._file)

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Unseekable:
    """`/dev/full` knows no length."""

    def __init__(self, file: Any) -> None:
        self.write, self.flush = file.write, file.flush

    def seek(self, _: int) -> None:
        pass

    def truncate(self) -> None:
        pass


def test_a_bucket_has_no_size_and_nothing_to_tidy() -> None:
    storage = ObjectStorage(MemoryStore())
    assert storage.capacity() is None
    assert storage.tidy() == 0
    storage.close()
