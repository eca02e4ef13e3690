import json

import pytest

from sendense.cli.redact import redact


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("postgresql://u:pw@db:5432/x", "postgresql://u:***@db:5432/x"),
        ("mysql+pymysql://u:p@w:x@db/x", "mysql+pymysql://u:***@db/x"),
        ("postgresql://u:a/b@h/d", "postgresql://u:***@h/d"),
        ("SENDENSE_TOKEN=abc def", "SENDENSE_TOKEN=*** def"),
        ('{"password": "a b", "name": "n"}', '{"password": ***, "name": "n"}'),
        ("{'secret_access_key': 'a'}", "{'secret_access_key': ***}"),
        ("'api-key': 'x y'", "'api-key': ***"),
        ('passphrase="with \\" quote" next', "passphrase=*** next"),
        ("Authorization: Basic dXNlcjpwdw==", "Authorization: Basic ***"),
        ("{'authorization': 'Bearer abc'}", "{'authorization': 'Bearer ***'}"),
        ("sent bearer abcdefgh.ijk", "sent bearer ***"),
        ("MYSQL_PWD=abc", "MYSQL_PWD=***"),
        ("{'password': b'a b'}", "{'password': b***}"),
        ("password=SecretStr('a b')", "password=SecretStr(***)"),
        (r'{"tag": "{\"password\": \"a b\"}"}', r'{"tag": "{\"password\": ***}"}'),
        ('password = """a\nb"""', "password = ***"),
        ("CREATE ROLE s LOGIN PASSWORD 'a''b'", "CREATE ROLE s LOGIN PASSWORD ***"),
        ("CREATE USER s IDENTIFIED BY 'a b'", "CREATE USER s IDENTIFIED BY ***"),
        (
            'Set-Cookie: vmware_soap_session="52d1-ab"; Path=/; Secure',
            "Set-Cookie: vmware_soap_session=***; Path=/; Secure",
        ),
        (
            'Cookie: vmware_soap_session="\\"52d1-ab\\""; Path=/',
            "Cookie: vmware_soap_session=***; Path=/",
        ),
        ("{'Cookie': 'vmware_soap_session=52d1'}", "{'Cookie': 'vmware_soap_session=***'}"),
        ("vmware-api-session-id: 0f3a9c", "vmware-api-session-id: ***"),
        ("<vcSessionCookie>52d1</vcSessionCookie>", "<vcSessionCookie>***</vcSessionCookie>"),
        (
            "<u:password xsi:type='s'>a &amp; b</u:password>",
            "<u:password xsi:type='s'>***</u:password>",
        ),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, safe: str) -> None:
    assert redact(text) == safe


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "ENCRYPTED ", "OPENSSH "])
@pytest.mark.parametrize("is_escaped", [False, True])
def test_a_private_key_is_hidden(kind: str, *, is_escaped: bool) -> None:
    body = "MIIEvQIBADANBgkqh+/kiG9w0BAQEF\n" * 20
    text = f"-----BEGIN {kind}PRIVATE KEY-----\n{body}-----END {kind}PRIVATE KEY-----\nand on"
    if is_escaped:
        text = json.dumps(text)
    safe = redact(f"read {text}")
    assert "MIIEv" not in safe
    assert safe.startswith(("read -----BEGIN", 'read "-----BEGIN'))
    assert "and on" in safe


def test_a_private_key_that_is_cut_off_is_hidden() -> None:
    assert "MII" not in redact("-----BEGIN PRIVATE KEY-----\nMIIEvQIB+A/DANBgkqh\nMIIx")


def test_a_certificate_is_no_secret() -> None:
    text = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    assert redact(text) == text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "part", ["-----BEGIN PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----!"]
)
def test_many_beginnings_of_keys_take_no_time(part: str) -> None:
    assert "PRIVATE KEY" in redact(part * 2_000)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8082/api/v1/backups",
        "job backup-x has 2 tokens left",
        "/srv/images/web 1.qcow2: no such file",
        "user@host: denied",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["a", "a.", "a-"])
def test_a_long_word_takes_no_time(part: str) -> None:
    text = part * 100_000
    assert redact(text) == text
