import io

import pytest

from sendense.connectors.vsphere.reader import causes, messages
from sendense.connectors.vsphere.reader.causes import Findings
from sendense.connectors.vsphere.reader.messages import Messages


def listen(data: bytes, *secrets: str) -> tuple[Messages, list[str]]:
    heard: list[str] = []
    found = Messages(io.BytesIO(data), secrets, heard.append)
    found.finish()
    return found, heard


def test_a_secret_is_hidden_in_every_spelling() -> None:
    text = b"a&b<c x\nerror a&amp;b&lt;c x\nq=a%26b%3Cc%20x\nq=a%26b%3Cc+x\n"
    found, _ = listen(text, "a&b<c x")
    assert found.list_lines() == ["***", "error ***", "q=***", "q=***"]


def test_what_raves_is_cut_and_the_rest_of_a_line_is_not_shown() -> None:
    long = b"x" * messages.LINE_BYTES_MAX + b"secret\n"
    found, heard = listen(long + b"line\n" * 1000, "secret")
    assert len(found.list_lines()) == messages.LINES_KEPT
    assert len(heard) == 1001
    assert "secret" not in "".join(heard)


def test_errors_are_told_apart() -> None:
    found, _ = listen(b"nbdkit: vddk[1]: debug: x\nnbdkit: vddk[1]: error: broken\n")
    assert found.list_errors() == ["broken"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("nbdkit: error: cannot open plugin 'vddk': x.so: cannot open", "vddk-plugin-missing"),
        ("nbdkit: error: cannot open filter 'retry': x.so", "program-missing"),
        ("error: lib64/libvixDiskLib.so.8: cannot open shared object", "vddk-library-missing"),
        ('error: required VDDK symbol "x" is missing', "vddk-library-unusable"),
        ("error: write: No space left on device", "no-space"),
        ("error: You do not have access rights to this file", "vsphere-disk-denied"),
        ("error: One of the parameters was invalid", "vddk-parameters"),
    ],
)
def test_words_become_a_kind(line: str, kind: str) -> None:
    findings = Findings()
    findings.look_at(line)
    assert causes.explain(findings.find(), [], what="disk").kind == kind


def test_an_error_says_more_than_a_line_for_debugging() -> None:
    findings = Findings()
    findings.look_at("debug: failed to verify certificate")
    assert causes.explain(findings.find(), [], what="disk").kind == "vsphere-certificate"
    findings.look_at("error: [NFC ERROR] broken")
    assert causes.explain(findings.find(), [], what="disk").kind == "vsphere-nfc-busy"


def test_talk_of_certificates_without_a_complaint_is_no_cause() -> None:
    findings = Findings()
    findings.look_at("debug: thumbprint of the certificate is AA")
    assert findings.find() is None
    assert causes.explain(None, ["odd"], what="disk").kind == "vddk-failed"
