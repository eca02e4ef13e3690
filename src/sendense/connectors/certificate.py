"""The certificate that a platform shows, for an administrator who decides whether to trust it.

Rule 1 of the sources' design: what is trusted is a pinned PEM, or else what this machine's own
authorities signed for the name of the host. A thumbprint is shown, and never what is checked.
"""

import hashlib
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from sendense.core.errors import Invalid, SendenseError, Unavailable

# A vCenter answers in milliseconds; a host that is away, or a firewall, in none at all.
ANSWER_SECONDS_MAX = 10.0

_PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_OTHER_NAME = 62  # OpenSSL's code
_EXPIRED, _NOT_YET = "it has expired", "it is not valid yet"
# OpenSSL's codes (x509_vfy.h) in words; it names the first problem that it meets.
_PROBLEMS = {
    9: _NOT_YET,
    10: _EXPIRED,
    18: "it is signed by itself",
    19: "it is signed by an authority that this machine does not trust",
    20: "it is signed by an authority that this machine does not trust",
    21: "it is signed by an authority that this machine does not trust",
    _OTHER_NAME: "it is for another name than this host's",
    64: "it is for another address than this host's",
}
_UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})


@dataclass(frozen=True, slots=True)
class SeenCertificate:
    """A certificate as the host showed it; it holds no secret.

    Attributes:
        sha256: of the whole certificate, as `AB:CD:…`.
        pem: what trusts it where it is pinned.
        trusted: it is the pinned one, or one that this machine trusts for the host.
        problems: what is wrong with it; empty where it is trusted.
    """

    sha256: str
    pem: str
    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    trusted: bool
    problems: tuple[str, ...]


def see(host: str, port: int, *, pinned_pem: str | None) -> SeenCertificate:
    """Return the certificate that a host shows now. Sends nothing but the handshake.

    Raises Unavailable, kind `vsphere-unreachable`, or `vsphere-tls-failed` where the host answers
    with something else than TLS; Invalid for a pinned PEM that is none.
    """
    try:
        return _describe(_shake_hands(host, port, create_context(pinned_pem)), ())
    except ssl.SSLCertVerificationError as error:
        # Its own words: the exception's text repeats the name of OpenSSL's source file.
        problem = _name(error, is_pinned=pinned_pem is not None)
    shown = _shake_hands(host, port, _create_blind_context())
    return _describe(shown, (problem,))


class _PinnedContext(ssl.SSLContext):
    """Trusts a pinned certificate for any name, and what it signed for the names in there alone.

    Many vCenters are called by address, so a pinned one counts whatever it is for. Where what is
    pinned is an authority, all that it ever signed would count just so: each printer of a company.
    """

    pinned: frozenset[bytes] = frozenset()

    def wrap_socket(self, *given: Any, **named: Any) -> ssl.SSLSocket:
        """Shake hands. Raises SSLCertVerificationError for another name, too."""
        secured = super().wrap_socket(*given, **named)
        shown = secured.getpeercert(binary_form=True) or b""
        if shown in self.pinned or _is_for(shown, secured.server_hostname or ""):
            return secured
        secured.close()
        error = ssl.SSLCertVerificationError(1, "signed for another name than the host's")
        error.verify_code, error.verify_message = _OTHER_NAME, "hostname mismatch"  # as OpenSSL's
        raise error


def create_context(pinned_pem: str | None) -> ssl.SSLContext:
    """Return what trusts the pinned certificate alone, or else this machine's authorities.

    A pinned one is trusted whatever name it is for; a pinned authority for hosts of the name that
    its certificate is for. Raises Invalid, kind `source-config-invalid`, for a PEM that is none.
    """
    if pinned_pem is None:
        return ssl.create_default_context()
    context = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # A certificate that an authority signed counts by itself, without that authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=pinned_pem)
        context.pinned = frozenset(map(ssl.PEM_cert_to_DER_cert, _PEM.findall(pinned_pem)))
    except (ssl.SSLError, ValueError) as error:
        reason = "must be a certificate in PEM"
        raise Invalid(
            f"config.certificate_pem: {reason}",
            kind="source-config-invalid",
            errors=[{"field": "config.certificate_pem", "reason": reason}],
        ) from error
    return context


def _is_for(der: bytes, host: str) -> bool:
    """Whether a certificate is for a host: by its address or name, or by one label of wildcard."""
    try:
        parsed = x509.load_der_x509_certificate(der)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        wanted = host.lower().rstrip(".")
    told = {one.lower() for one in names.get_values_for_type(x509.DNSName)}
    return wanted in told or f"*.{wanted.partition('.')[2]}" in told


def _create_blind_context() -> ssl.SSLContext:
    """Return what trusts anybody: to look at a certificate, never to send anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _shake_hands(host: str, port: int, context: ssl.SSLContext) -> bytes:
    """Return the host's certificate (DER). Raises SSLCertVerificationError, Unavailable."""
    try:
        with (
            socket.create_connection((host, port), timeout=ANSWER_SECONDS_MAX) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError:
        raise
    except socket.gaierror as error:
        raise _unreachable(host, port, "its name is not known here") from error
    except TimeoutError as error:
        raise _unreachable(
            host, port, f"it did not answer within {ANSWER_SECONDS_MAX:.0f} seconds"
        ) from error
    except ssl.SSLError as error:
        raise _no_tls(host, port, error.reason or "the handshake failed") from error
    except OSError as error:
        raise _unreachable(host, port, error.strerror or type(error).__name__) from error
    if shown is None:
        raise _no_tls(host, port, "it showed no certificate")
    return shown


def _describe(der: bytes, problems: tuple[str, ...]) -> SeenCertificate:
    try:
        parsed = x509.load_der_x509_certificate(der)
        digest = hashlib.sha256(der).hexdigest().upper()
        return SeenCertificate(
            sha256=":".join(digest[at : at + 2] for at in range(0, len(digest), 2)),
            pem=ssl.DER_cert_to_PEM_cert(der),
            subject=parsed.subject.rfc4514_string(),
            issuer=parsed.issuer.rfc4514_string(),
            not_before=parsed.not_valid_before_utc,
            not_after=parsed.not_valid_after_utc,
            trusted=not problems,
            problems=problems,
        )
    except ValueError as error:
        raise Unavailable(
            f"the host's certificate cannot be read: {error}",
            kind="vsphere-tls-failed",
            hint="look at it by `openssl s_client -connect HOST:PORT`",
        ) from error


def _name(error: ssl.SSLCertVerificationError, *, is_pinned: bool) -> str:
    if is_pinned and error.verify_code in _UNKNOWN_ISSUER:
        return "it is another one than the one that is pinned"
    return _PROBLEMS.get(error.verify_code, error.verify_message)


def _unreachable(host: str, port: int, reason: str) -> SendenseError:
    return Unavailable(
        f"{host} cannot be reached at port {port}: {reason}",
        kind="vsphere-unreachable",
        hint="look at the host's name and port, at the network and at firewalls in between, from"
        " the machine that the server runs on",
        host=host,
        port=port,
    )


def _no_tls(host: str, port: int, reason: str) -> SendenseError:
    return Unavailable(
        f"{host} does not answer with TLS at port {port}: {reason.replace('_', ' ').lower()}",
        kind="vsphere-tls-failed",
        hint="name the port of the vCenter's HTTPS, 443 by default, as HOST:PORT",
        host=host,
        port=port,
    )
