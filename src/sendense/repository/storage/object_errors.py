"""What the failures of object stores mean, and whether asking again may help."""

import re

from sendense.core.errors import Corrupt, Denied, NoSpace, NotFound, SendenseError, Unavailable

_TEXT_MAX = 300
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_ROOM = re.compile(r"<Code>(QuotaExceeded|\w*StorageFull|InsufficientStorage)")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
# Where the library looks for credentials last, on a machine in the cloud.
_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|metadata\.google\.internal")
# Of the library's dump of a failed connection.
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")
_CAUSE = re.compile(r'(?:message|error): "([^"\n]{1,200})"')
_DENIED = frozenset({401, 403})
_MISSING = 404
CONNECT_SECONDS_MAX = 10.0
_BEYOND = 416
_SERVER = 500
_FULL = 507
_REPEATED = frozenset({408, 429})
_FINAL = frozenset({501, 505})
_DENIED_HINT = (
    "look at the store's credentials, its policy, and this machine's clock; what a repository needs"
    " is listed in docs/operations/object-stores.md"
)


def truncated(name: str, wanted: int) -> Corrupt:
    """Return the error for an object that is shorter than it should be."""
    return Corrupt(f"object {name} ends before byte {wanted}", kind="object-truncated", name=name)


def unset(error: Exception) -> Denied:
    """Return the error for a store that cannot be asked at all, for want of credentials."""
    text = str(error).partition("Debug source:")[0]
    return Denied(
        f"there are no credentials for the store: {_shorten(text)}",
        kind="repository-denied",
        hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_ACCOUNT_NAME and"
        " AZURE_STORAGE_ACCOUNT_KEY, or GOOGLE_APPLICATION_CREDENTIALS in the environment",
    )


def translate(
    error: Exception, kind: str, name: str, *, end: int | None
) -> tuple[SendenseError, bool]:
    """Return the error of ours that says what a caller should do, and whether to try again.

    Args:
        error: the library's.
        kind: of the request, as it is counted.
        name: what the request was about.
        end: where the range ends that was asked for, if one was.
    """
    text, _, dump = str(error).partition("Debug source:")
    if _NO_BUCKET.search(text):
        return _no_bucket(), False
    if isinstance(error, FileNotFoundError):
        # A put's name was taken a moment ago and is free now, or a listing does not show it yet.
        again = kind == "put"
        return missing(name), again
    if _NO_CREDENTIALS.search(text):
        return unset(error), False
    found = _STATUS.search(text)
    if found is None:
        return _translate_connection(text, dump, name)
    return _translate_status(int(found[1]), text, name, end)


def _translate_connection(text: str, dump: str, name: str) -> tuple[SendenseError, bool]:
    certificate = _CERTIFICATE.search(dump)
    if certificate:
        return Unavailable(
            f"the store's certificate is not trusted: {certificate[1]}",
            kind="storage-failed",
            hint="name the file of its authority's certificate by SSL_CERT_FILE in the environment",
        ), False
    cause = _CAUSE.search(dump)
    why = f"{_shorten(text)}: {cause[1].lower()}" if cause else _shorten(text)
    return unavailable(name, why), True


def _translate_status(
    status: int, text: str, name: str, end: int | None
) -> tuple[SendenseError, bool]:
    if status in _DENIED:
        return Denied(
            f"the store refuses access to {name}: {_shorten(text)}",
            kind="repository-denied",
            hint=_DENIED_HINT,
            name=name,
        ), False
    if status == _BEYOND and end is not None:
        return truncated(name, end), False
    if status == _FULL or _NO_ROOM.search(text):
        return NoSpace(
            f"the store has no room for {name}: {_shorten(text)}",
            kind="repository-full",
            hint="raise the bucket's quota, or free space in the store",
            name=name,
        ), False
    again = status in _REPEATED or (status >= _SERVER and status not in _FINAL)
    return unavailable(name, _shorten(text)), again


def translate_code(code: str, status: int, permission: str, name: str) -> SendenseError:
    """Return the error of ours for a refused request of botocore's.

    Its field `code` is the store's own word.
    """
    if code == "NoSuchBucket":
        return _no_bucket()
    if status in _DENIED:
        return Denied(
            f"the store refuses a request for {name} ({code})",
            kind="repository-denied",
            hint=f"it needs the permission {permission}; {_DENIED_HINT}",
            name=name,
        )
    trouble = missing(name) if status == _MISSING else unavailable(name, f"{code} ({status})")
    trouble.fields["code"] = code
    return trouble


def _no_bucket() -> NotFound:
    return NotFound(
        "there is no such bucket or container",
        kind="repository-missing",
        hint="create it, or mend the repository's URL",
    )


def missing(name: str) -> NotFound:
    """Return the error for an object that is not there."""
    return NotFound(f"there is no object {name}", kind="object-missing", name=name)


def unavailable(name: str, why: str) -> Unavailable:
    """Return the error for a store that could not be asked."""
    return Unavailable(
        f"the store does not answer for {name}: {why}",
        kind="storage-failed",
        hint="look at the network and at the store's own state, then try again",
        name=name,
    )


def _shorten(text: str) -> str:
    """Return an answer's status and code; the rest may show what is signed, or a proxy's page."""
    code = _CODE.search(text)
    told = text.partition("<")[0].rpartition(" - ")[2] if " - " in text else text
    told = " ".join(told.split()).rstrip(": ")[:_TEXT_MAX]
    return f"{told} ({code[1]})" if code else told
