"""Takes secrets out of text that leaves the process: logs, and what is sent to support.

The product never means to write one; this is for what others put into their messages, such as a
driver that repeats its URL.
"""

import re

HIDDEN = "***"

_WORDS = (
    r"password|passwd|pwd|passphrase|secret|token|api[_-]?key|credential|recovery[_-]key"
    # A vCenter's cookie, SOAP header and REST header: each alone is a login.
    r"|vmware[_-]soap[_-]session|vmware-api-session-id|vcSessionCookie"
)
# Lengths are bounded: whoever names something could make a search of a long word take minutes.
_NAMES = rf"[\w.-]{{0,255}}(?:{_WORDS})(?![\w-]*_file\b)[\w-]*"  # where a secret lies is none
_PATTERNS = (
    # A private key in PEM, its lines apart or escaped; of one that is cut off, whatever is there.
    (
        re.compile(
            r"(?s)(?P<before>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----)"
            r"(?:(?>(?:[^-]|-(?!----(?:BEGIN|END) ))*)(?=-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----)"
            r"|[\w\s\\+/=:,-]*)"
        ),
        rf"\g<before>{HIDDEN}",
    ),
    # <vcSessionCookie>…</vcSessionCookie>, <password>…</password>: what SOAP looks like.
    (
        re.compile(rf"(?i)(?P<before><(?:\w{{1,32}}:)?(?:{_WORDS})(?:\s[^<>]{{0,255}})?>)[^<]+"),
        rf"\g<before>{HIDDEN}",
    ),
    # A password in a URL: scheme://user:password@host. Up to the last @, since a password that was
    # not encoded may hold an @ or a /: rather too much is hidden than half of it shown.
    (re.compile(r"(?P<before>[a-zA-Z][\w+.-]{0,63}://[^\s:/@]*:)\S*(?=@)"), rf"\g<before>{HIDDEN}"),
    # Authorization: Bearer …, in a header or a dictionary of headers.
    (
        re.compile(r"(?i)(?P<before>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:\w+\s+)?)[^\s'\",}]+"),
        rf"\g<before>{HIDDEN}",
    ),
    (re.compile(r"(?i)(?P<before>\bbearer\s+)[\w.~+/=-]{8,}"), rf"\g<before>{HIDDEN}"),
    # PASSWORD 'x' and IDENTIFIED BY 'x', in a statement that a driver repeats.
    (
        re.compile(r"(?i)(?P<before>\b(?:password|identified\s+by)\s+)'(?:[^'\\]|\\.|'')*'"),
        rf"\g<before>{HIDDEN}",
    ),
    # name = value, "name": "value"; a quoted value may hold blanks, be of bytes or of another type,
    # and lie in a text inside JSON. Whether there is one, and what is nested below such a name, is
    # no secret.
    (
        re.compile(
            rf"(?is)(?P<before>\b{_NAMES}(?:\\*['\"])?\s*[:=]\s*(?:[a-z]+\(?(?=['\"]))?)"
            r"(?:\"{3}.+?\"{3}|'{3}.+?'{3}"
            r"|\"(?:[^\"\\]|\\.)+\"|'(?:[^'\\]|\\.)+'"
            r"|(?P<quote>\\+['\"])(?:(?!(?P=quote)).)+(?P=quote)"
            r"|(?!(?:true|false|null)\b)[^\s,;&'\"{}\[][^\s,;&'\"}]*)"
        ),
        rf"\g<before>{HIDDEN}",
    ),
)


def redact(text: str) -> str:
    """Return the text with whatever looks like a password, a token or a key replaced."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
