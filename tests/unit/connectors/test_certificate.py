"""Rule 1: what a host shows and what is wrong with it, against real TLS servers."""

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sendense.connectors import certificate
from sendense.core.errors import Invalid, Unavailable

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
HOST = "127.0.0.1"


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Made:
    """A certificate with its key, signed by itself or by another."""

    def __init__(
        self,
        subject: str = "vc1",
        *,
        signer: "Made | None" = None,
        names: tuple[str, ...] = (),
        first: datetime = NOW - DAY,
        last: datetime = NOW + DAY,
        authority: bool = False,
    ) -> None:
        self.subject = name(subject)
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = signer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(signer.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(first)
            .not_valid_after(last)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ip_address(HOST)), *map(x509.DNSName, names)]
                ),
                critical=False,
            )
        )
        self.signed = builder.sign(signer.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.signed.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def sha256(self) -> str:
        der = self.signed.public_bytes(serialization.Encoding.DER)
        return hashlib.sha256(der).hexdigest()

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.sha256}.pem"
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(key + self.pem.encode())
        return path


Serve = Callable[[Made], int]


@contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Answer connections by a function until the block ends; give the port."""
    with socket.create_server((HOST, 0)) as server:

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(5)
                        handle(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(made: Made) -> int:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(made.write(tmp_path))

            def shake_hands(connection: socket.socket) -> None:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1)

            return stack.enter_context(listening(shake_hands))

        yield start


def see(port: int, made: Made | None = None) -> certificate.SeenCertificate:
    return certificate.see(HOST, port, pinned_pem=None if made is None else made.pem)


def test_a_certificate_that_nobody_trusts_is_shown_with_its_problem(serve: Serve) -> None:
    made = Made()
    seen = see(serve(made))
    assert seen.sha256.replace(":", "").lower() == made.sha256
    assert len(seen.sha256) == 32 * 3 - 1
    assert seen.pem.strip() == made.pem.strip()
    assert (seen.subject, seen.issuer) == ("CN=vc1", "CN=vc1")
    assert seen.not_before < NOW < seen.not_after
    assert seen.trusted is False
    assert seen.problems == ("it is signed by itself",)


def test_a_pinned_certificate_is_trusted_and_no_other(serve: Serve) -> None:
    made, other = Made(), Made()
    port = serve(made)
    assert see(port, made).trusted is True
    assert see(port, made).problems == ()
    wrong = see(port, other)
    assert wrong.trusted is False
    assert wrong.problems == ("it is another one than the one that is pinned",)
    assert wrong.sha256.replace(":", "").lower() == made.sha256, "what it shows, not what is pinned"


def test_a_certificate_of_an_authority_is_pinned_by_itself(serve: Serve) -> None:
    authority = Made("CA", authority=True)
    made, sibling = Made(signer=authority), Made(signer=authority)
    port = serve(made)
    assert see(port, made).trusted is True
    assert see(port, authority).trusted is True, "a pinned authority is trusted for what it signs"
    assert see(port, sibling).trusted is False
    assert "authority" in see(port).problems[0]


def test_what_a_pinned_authority_signed_for_another_host_is_not_trusted(serve: Serve) -> None:
    """Rule 1: else any server of a company could pass for its vCenter, and take the password."""
    authority = Made("CA", authority=True)
    made = Made(signer=authority, names=("printer.example",))
    port = serve(made)
    for pins, trusted in ((authority.pem, False), (authority.pem + made.pem, True)):
        seen = certificate.see("localhost", port, pinned_pem=pins)
        assert seen.trusted is trusted
        expected = () if trusted else ("it is for another name than this host's",)
        assert seen.problems == expected
    context = certificate.create_context(authority.pem)
    with (
        socket.create_connection((HOST, port), timeout=5) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
        context.wrap_socket(plain, server_hostname="localhost"),
    ):
        pass


def test_a_pinned_authority_for_itself_needs_no_name(serve: Serve) -> None:
    made = Made(authority=True)
    assert certificate.see("localhost", serve(made), pinned_pem=made.pem).trusted is True


@pytest.mark.parametrize(
    ("host", "is_for"),
    [
        ("vc1.example", True),
        ("VC1.Example.", True),
        ("vc2.example", False),
        ("a.wild.example", True),
        ("a.b.wild.example", False),
        ("wild.example", False),
        ("", False),
        ("example", False),
        (HOST, True),
        ("127.0.0.2", False),
        ("::1", False),
    ],
)
def test_a_certificate_is_for_its_names_and_addresses(host: str, *, is_for: bool) -> None:
    made = Made(names=("vc1.EXAMPLE", "*.wild.example"))
    der = made.signed.public_bytes(serialization.Encoding.DER)
    assert certificate._is_for(der, host) is is_for


@pytest.mark.parametrize("der", [b"", b"no DER"])
def test_what_cannot_be_read_is_for_nobody(der: bytes) -> None:
    assert certificate._is_for(der, HOST) is False


@pytest.mark.parametrize(
    ("first", "last", "problem"),
    [
        (NOW - 2 * DAY, NOW - DAY, "it has expired"),
        (NOW + DAY, NOW + 2 * DAY, "it is not valid yet"),
    ],
)
def test_dates_are_told_even_of_a_pinned_one(
    serve: Serve, first: datetime, last: datetime, problem: str
) -> None:
    made = Made(first=first, last=last)
    seen = see(serve(made), made)
    assert seen.problems == (problem,)
    assert seen.trusted is False


def test_what_this_machine_trusts_needs_no_pin_but_the_right_name(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Made("CA", authority=True)
    (tmp_path / "ca.pem").write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    port = serve(Made(signer=authority))
    assert see(port).trusted is True
    elsewhere = certificate.see("localhost", port, pinned_pem=None)
    assert elsewhere.trusted is False
    assert elsewhere.problems == ("it is for another name than this host's",)


def test_a_host_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable, match="refused") as caught:
        see(port)
    assert caught.value.kind == "vsphere-unreachable"
    with pytest.raises(Unavailable, match="name is not known"):
        certificate.see("no-such-host.invalid", 443, pinned_pem=None)
    monkeypatch.setattr(certificate, "ANSWER_SECONDS_MAX", 0.2)
    with (
        socket.create_server((HOST, 0)) as silent,
        pytest.raises(Unavailable, match="did not answer within"),
    ):
        see(silent.getsockname()[1])


def test_what_is_no_tls_is_told() -> None:
    def speak_http(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.recv(1000)

    with listening(speak_http) as port, pytest.raises(Unavailable) as caught:
        see(port)
    assert caught.value.kind == "vsphere-tls-failed"
    assert "HOST:PORT" in caught.value.hint


@pytest.mark.parametrize("pem", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nMII\n"])
def test_a_pem_that_is_none_is_refused(pem: str) -> None:
    with pytest.raises(Invalid) as caught:
        certificate.see(HOST, 1, pinned_pem=pem)
    assert caught.value.kind == "source-config-invalid"
