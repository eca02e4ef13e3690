"""vCenter's answers as text: faults, tasks that failed, properties put in their place."""

import re
from collections.abc import Mapping
from xml.sax import saxutils

_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    "<soapenv:Body>{}</soapenv:Body></soapenv:Envelope>"
)
_OBJECT = re.compile(rb"<(objects|returnval)><obj [^>]*>([^<]+)</obj>.*?</\1>", re.DOTALL)
_DISK = re.compile(rb'<VirtualDevice [^>]*type="VirtualDisk".*?</VirtualDevice>', re.DOTALL)
_KEY = re.compile(rb"<key>(-?\d+)</key>")
_BACKING_END = re.compile(rb"(<backing [^>]*>)(.*?)(</backing>)", re.DOTALL)


# An element's text, or type and reference of a managed object.
Fields = Mapping[str, str | tuple[str, str]]


def envelope(body: str) -> bytes:
    """Return a whole answer."""
    return _ENVELOPE.format(body).encode()


def fault(name: str, message: str = "", **fields: str | tuple[str, str]) -> bytes:
    """Return the answer with a method fault and its members."""
    text = saxutils.escape(message or name)
    return envelope(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{text}</faultstring>"
        f"<detail>{_fault_element(f'{name}Fault', name, fields)}</detail></soapenv:Fault>"
    )


def failed_task(moref: str, name: str, message: str = "", **fields: str | tuple[str, str]) -> bytes:
    """Return the answer to who asks for the state of a task that ended with a fault."""
    inner = _elements(fields)
    return envelope(
        '<RetrievePropertiesExResponse xmlns="urn:vim25"><returnval><objects>'
        f'<obj type="Task">{moref}</obj>'
        '<propSet><name>info.state</name><val xsi:type="TaskInfoState">error</val></propSet>'
        '<propSet><name>info.error</name><val xsi:type="LocalizedMethodFault">'
        f'<fault xsi:type="{name}">{inner}</fault>'
        f"<localizedMessage>{saxutils.escape(message or name)}</localizedMessage></val></propSet>"
        "</objects></returnval></RetrievePropertiesExResponse>"
    )


def started_task(method: str, moref: str) -> bytes:
    """Return the answer to a method that starts a task."""
    return envelope(
        f'<{method}Response xmlns="urn:vim25"><returnval type="Task">{moref}</returnval>'
        f"</{method}Response>"
    )


def nothing_found(method: str) -> bytes:
    """Return the answer of a session that has ended without saying so."""
    return envelope(f'<{method}Response xmlns="urn:vim25"></{method}Response>')


def changed_areas(start: int, length: int, areas: list[tuple[int, int]]) -> bytes:
    """Return the answer about changes."""
    rows = "".join(
        f"<changedArea><start>{first}</start><length>{count}</length></changedArea>"
        for first, count in areas
    )
    return envelope(
        '<QueryChangedDiskAreasResponse xmlns="urn:vim25"><returnval>'
        f"<startOffset>{start}</startOffset><length>{length}</length>{rows}</returnval>"
        "</QueryChangedDiskAreasResponse>"
    )


def find_field(body: bytes, name: str) -> str:
    """Return the text of the first element of that name, or ""."""
    found = re.search(rb"<%b(?:\s[^>]*)?>([^<]*)<" % name.encode(), body)
    return "" if found is None else saxutils.unescape(found.group(1).decode())


def find_method(body: bytes) -> str:
    """Return the method that a request calls."""
    found = re.search(rb"<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)", body)
    return "" if found is None else found.group(1).decode()


def list_morefs(answer: bytes) -> set[str]:
    """Return the objects that an answer tells properties of."""
    return {found.group(2).decode() for found in _OBJECT.finditer(answer)}


def put_property(answer: bytes, moref: str, path: str, value: str | None) -> bytes:
    """Return an answer in which an object's property has another value, or none."""
    old = re.compile(
        rb"<propSet><name>%b</name>(?:<val[^>]*/>|<val.*?</val>)</propSet>"
        % re.escape(path.encode()),
        re.DOTALL,
    )
    new = b"" if value is None else f"<propSet><name>{path}</name>{value}</propSet>".encode()

    def change(found: re.Match[bytes]) -> bytes:
        text = found.group(0)
        if found.group(2).decode() != moref:
            return text
        head, tail = text.split(b"</obj>", 1)
        return head + b"</obj>" + new + old.sub(b"", tail)

    return _OBJECT.sub(change, answer)


def put_change_ids(answer: bytes, moref: str, change_ids: dict[int, str]) -> bytes:
    """Return an answer in which the disks of a snapshot have change ids."""

    def change_disk(found: re.Match[bytes]) -> bytes:
        text = found.group(0)
        key = _KEY.search(text)
        change_id = change_ids.get(int(key.group(1))) if key else None
        if change_id is None:
            return text
        element = f"<changeId>{change_id}</changeId>".encode()
        return _BACKING_END.sub(rb"\1\2" + element + rb"\3", text, count=1)

    def change(found: re.Match[bytes]) -> bytes:
        text = found.group(0)
        return _DISK.sub(change_disk, text) if found.group(2).decode() == moref else text

    return _OBJECT.sub(change, answer)


def _fault_element(tag: str, kind: str, fields: Fields) -> str:
    return f'<{tag} xmlns="urn:vim25" xsi:type="{kind}">{_elements(fields)}</{tag}>'


def _elements(fields: Fields) -> str:
    parts = []
    for key, value in fields.items():
        kind, text = value if isinstance(value, tuple) else ("", value)
        attribute = f' type="{kind}"' if kind else ""
        parts.append(f"<{key}{attribute}>{saxutils.escape(text)}</{key}>")
    return "".join(parts)
