"""`sendense source`: the platforms VMs are read from."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import (
    certificate,
    credentials,
    lookup,
    paging,
    source_limit,
    tags,
    text,
    vcenter,
    waiting,
)
from sendense.cli.command import Session, command, group
from sendense.cli.failure import usage
from sendense.cli.output import Column

app = group("source", "The platforms that VMs are read from.")
source_limit.register(app)

_CONFIG_BYTES_MAX = 1024 * 1024  # a thousand VMs by hand; more is a mistake

SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help="Name or id of the source.")]
TypeOption = Annotated[
    str, typer.Option("--type", help="vsphere, image or qemu: what kind of platform this is.")
]
VmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vm",
        metavar="NAME=…",
        help="A VM: image NAME=DISK[,DISK…], qemu NAME=QMP_SOCKET[,AGENT_SOCKET]. Repeatable.",
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="The type's configuration as JSON; - reads stdin."
    ),
]


@command(
    app,
    "add",
    examples=[
        "sendense source add lab --type image --vm web1=/srv/web1.qcow2,/srv/web1-data.raw",
        "sendense source add kvm1 --type qemu --vm db1=/run/db1.qmp,/run/db1.agent",
        "sendense source add lab --type image --config vms.json",
        "sendense source add vc1 --type vsphere --host vc1.example --username me@vsphere.local",
        "sendense source add vc1 --type vsphere --host vc1 --username me --certificate vc1.pem",
    ],
)
def add(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    name: Annotated[str, typer.Argument(help="A name of your choice.")],
    kind: TypeOption,
    vm: VmOption = None,
    config: ConfigOption = None,
    require: tags.RequireOption = None,
    host: vcenter.HostOption = None,
    username: credentials.UsernameOption = None,
    password_file: credentials.PasswordFileOption = None,
    certificate_file: certificate.CertificateOption = None,
    trust_fingerprint: certificate.FingerprintOption = None,
    reader: vcenter.ReaderOption = None,
    vddk_libdir: vcenter.VddkOption = None,
    file_dir: vcenter.FileDirOption = None,
    *,
    password_stdin: credentials.PasswordStdinOption = False,
) -> None:
    """Register a source.

    A vCenter's certificate is shown and asked about where this hub does not trust it, and then
    pinned; its password is asked for, or read from a file or standard input.
    """
    described = vcenter.describe(
        kind, host=host, reader=reader, vddk_libdir=vddk_libdir, file_dir=file_dir
    )
    wanted = _read_config(kind, vm, config, described)
    if described is not None:
        if username is None:
            raise usage("a vCenter is logged in to: give --username")
        wanted = _trust(session, kind, wanted, certificate_file, trust_fingerprint)
    elif certificate_file or trust_fingerprint:
        raise usage("--certificate and --trust-fingerprint belong to --host")
    given = credentials.find(session, username=username, file=password_file, stdin=password_stdin)
    body = {
        "name": name,
        "type": kind,
        "config": wanted,
        **({"credentials": given} if given else {}),
        **tags.parse_required(require),
    }
    answer = session.api.post("sources", body=body)
    for warning in answer.data.get("warnings", ()):
        session.output.warn(warning)
    if session.answered(answer):
        return
    session.output.line(f"source {name} added: {answer.data['id']}")
    session.output.note(f"next: sendense source discover {name}")


@command(
    app,
    "test",
    examples=[
        "sendense source test lab",
        "sendense source test --type image --vm web1=/srv/web1.qcow2",
        "sendense source test --type vsphere --host vc1.example",
    ],
)
def probe_source(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    source: Annotated[
        str | None, typer.Argument(help="Name or id; left out, a configuration is tested unsaved.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Type of the configuration to test unsaved.")
    ] = None,
    vm: VmOption = None,
    config: ConfigOption = None,
    host: vcenter.HostOption = None,
    username: credentials.UsernameOption = None,
    password_file: credentials.PasswordFileOption = None,
    certificate_file: certificate.CertificateOption = None,
    reader: vcenter.ReaderOption = None,
    vddk_libdir: vcenter.VddkOption = None,
    file_dir: vcenter.FileDirOption = None,
    *,
    password_stdin: credentials.PasswordStdinOption = False,
) -> None:
    """Ask whether a source answers, before or after it is saved.

    Of a vCenter it shows the certificate; without --username nothing is logged in to, and with it
    only where the certificate is trusted.
    """
    if source is not None:
        place = host, reader, vddk_libdir, file_dir
        login = username, password_file, certificate_file
        if any((kind, vm, config, *place, *login)):
            raise usage("give a source, or a type with its configuration, not both")
        path = ("sources", lookup.find_id(session.api, "sources", source), "test")
        answer = session.api.post(*path)
    else:
        if kind is None:
            raise usage("give a source's name, or --type with --host, --vm or --config")
        described = vcenter.describe(
            kind, host=host, reader=reader, vddk_libdir=vddk_libdir, file_dir=file_dir
        )
        wanted = _read_config(kind, vm, config, described)
        if certificate_file is not None:
            wanted = {**wanted, "certificate_pem": certificate.read(certificate_file)}
        given = credentials.find(
            session, username=username, file=password_file, stdin=password_stdin
        )
        body = {"type": kind, "config": wanted, **({"credentials": given} if given else {})}
        answer = session.api.post("sources", "test", body=body)
    if not session.output.as_json:
        _print_tested(session, answer.data)
    if username is not None:
        # Or a script would take a password for right that nobody has looked at.
        certificate.require_trusted(answer)
    session.answered(answer)


@command(
    app,
    "set-credentials",
    examples=[
        "sendense source set-credentials vc1 --username me@vsphere.local",
        "sendense source set-credentials vc1 --username me --password-file vc1.password",
    ],
)
def set_credentials(
    session: Session,
    source: SourceArgument,
    username: Annotated[str, typer.Option("--username", help="Who logs in to the platform.")],
    password_file: credentials.PasswordFileOption = None,
    *,
    password_stdin: credentials.PasswordStdinOption = False,
) -> None:
    """Give a source another password, as after it was changed on the platform."""
    source_id = lookup.find_id(session.api, "sources", source)
    given = credentials.find(session, username=username, file=password_file, stdin=password_stdin)
    answer = session.api.patch("sources", source_id, body={"credentials": given})
    if session.answered(answer):
        return
    session.output.line(f"source {source} has new credentials")
    session.output.note(f"try them: sendense source test {source}")


@command(
    app,
    "trust",
    examples=[
        "sendense source trust vc1",
        "sendense source trust vc1 --certificate vc1.pem",
    ],
)
def trust(
    session: Session,
    source: SourceArgument,
    certificate_file: certificate.CertificateOption = None,
    trust_fingerprint: certificate.FingerprintOption = None,
) -> None:
    """Trust the certificate that a source shows now, as after it was renewed."""
    found = session.api.get("sources", lookup.find_id(session.api, "sources", source)).data
    config = _trust(session, found["type"], found["config"], certificate_file, trust_fingerprint)
    answer = session.api.patch("sources", found["id"], body={"config": config})
    if session.answered(answer):
        return
    how = "pinned" if "certificate_pem" in config else "trusted by this machine"
    session.output.line(f"the certificate of source {source} is {how}")


@command(app, "list", examples=["sendense source list", "sendense source list --json"])
def list_sources(
    session: Session, limit: paging.LimitOption = None, offset: paging.OffsetOption = None
) -> None:
    """List the sources."""
    answer = session.api.get("sources", limit=limit, offset=offset)
    if session.answered(answer):
        return
    entries = answer.data["sources"]
    if not entries:
        session.output.note("no sources yet; add one by `sendense source add`")
        return
    session.output.table(
        [
            Column("NAME"),
            Column("TYPE"),
            Column("VMS", right=True),
            Column("DISCOVERED (UTC)"),
            Column("ID"),
            Column("TROUBLE"),
        ],
        [
            (
                entry["name"],
                entry["type"],
                entry["vm_count"],
                text.moment(entry["discovered_at"]),
                entry["id"],
                entry["trouble"] or text.MISSING,
            )
            for entry in entries
        ],
    )
    session.output.shown(len(entries), answer.data)
    for entry in entries:
        for warning in entry.get("warnings") or ():
            session.output.warn(f"source {entry['name']}: {warning}")


@command(app, "show", examples=["sendense source show lab"])
def show(session: Session, source: SourceArgument) -> None:
    """Show one source with its configuration."""
    answer = session.api.get("sources", lookup.find_id(session.api, "sources", source))
    if session.answered(answer):
        return
    _print_source(session, answer.data)


@command(
    app,
    "update",
    examples=[
        "sendense source update lab --name laboratory",
        "sendense source update lab --config vms.json",
    ],
)
def update(
    session: Session,
    source: SourceArgument,
    name: Annotated[str | None, typer.Option(help="The new name.")] = None,
    vm: VmOption = None,
    config: ConfigOption = None,
) -> None:
    """Change a source's name or its whole configuration."""
    source_id = lookup.find_id(session.api, "sources", source)
    body: dict[str, Any] = {}
    if name is not None:
        body["name"] = name
    if vm or config:
        kind = session.api.get("sources", source_id).data.get("type", "")
        body["config"] = _read_config(kind, vm, config)
    if not body:
        raise usage("nothing to change; give --name, --vm or --config")
    answer = session.api.patch("sources", source_id, body=body)
    if session.answered(answer):
        return
    _print_source(session, answer.data)


@command(app, "remove", examples=["sendense source remove lab", "sendense source remove lab --yes"])
def remove(
    session: Session,
    source: SourceArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget a source. Its backups stay in their repositories."""
    source_id = lookup.find_id(session.api, "sources", source)
    session.output.confirm(f"Forget source {source}?", yes=yes)
    answer = session.api.delete("sources", source_id)
    session.tell(answer, f"source {source} removed")


@command(
    app,
    "discover",
    examples=["sendense source discover lab", "sendense source discover lab --no-wait --json"],
)
def discover(
    session: Session,
    source: SourceArgument,
    *,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the job is started.")
    ] = False,
) -> None:
    """Read a source's VMs and disks into the catalog, and wait until it is done."""
    source_id = lookup.find_id(session.api, "sources", source)
    answer = session.api.start("sources", source_id, "discover")
    job_id = str(answer.data["job_id"])
    if no_wait:
        if session.output.as_json:
            session.output.json(answer.text)
        else:
            session.output.line(f"job {job_id} started")
            session.output.note(f"watch it: sendense job watch {job_id}")
        return
    ended = waiting.wait_for_job(session, job_id)
    if session.output.as_json:
        session.output.json(ended.body)
    waiting.check_completed(ended)
    if not session.output.as_json:
        found = session.api.get("vms", source_id=source_id, limit=1).data.get("total", 0)
        session.output.line(f"source {source} discovered: {text.count(found, 'VM')}")
        session.output.note("see them: sendense vm list")


def _print_source(session: Session, source: dict[str, Any]) -> None:
    config = dict(source.get("config") or {})
    pinned = config.pop("certificate_pem", None)
    session.output.facts(
        [
            ("Name", source.get("name")),
            ("Id", source["id"]),
            ("Type", source.get("type")),
            ("VMs", source.get("vm_count")),
            ("Discovered", text.moment(source.get("discovered_at"))),
            ("Trouble", source.get("trouble")),
            ("Warning", "; ".join(source.get("warnings") or ())),
            ("Username", source.get("username")),
            ("Created", text.moment(source.get("created_at"))),
            ("Certificate", "pinned" if pinned else None),
            ("Configuration", json.dumps(config, ensure_ascii=False)),
        ]
    )


def _print_tested(session: Session, tested: dict[str, Any]) -> None:
    shown = tested.get("certificate")
    if shown:
        session.output.facts(certificate.facts(shown))
    for warning in tested.get("warnings") or ():
        session.output.warn(warning)
    session.output.line(f"it answers: {tested['detail']}")


def _trust(
    session: Session,
    kind: str,
    config: dict[str, Any],
    file: Path | None,
    fingerprint: str | None,
) -> dict[str, Any]:
    """Return the configuration with the certificate that is to be trusted."""
    if file is None:
        return certificate.pin(session, kind, config, fingerprint=fingerprint)
    if fingerprint is not None:
        raise usage("give --certificate or --trust-fingerprint, one of them")
    return {**config, "certificate_pem": certificate.read(file)}


def _read_config(
    kind: str,
    vms: list[str] | None,
    config: str | None,
    described: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a type's configuration from options or a file. Raises a usage failure."""
    if (bool(vms), config is not None, described is not None).count(True) != 1:
        raise usage("give the configuration by --host, by --vm or by --config, one of them")
    if described is not None:
        return described
    if config is not None:
        return _read_config_file(config)
    if kind == "image":
        return {"vms": [_parse_image_vm(value) for value in vms or []]}
    if kind == "qemu":
        return {"vms": [_parse_qemu_vm(value) for value in vms or []]}
    raise usage(f"--vm is for the types image and qemu; type {kind} takes --config FILE")


def _read_config_file(name: str) -> dict[str, Any]:
    try:
        if name == "-":
            content = sys.stdin.buffer.read(_CONFIG_BYTES_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(_CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise usage(f"cannot read the configuration {name}: {error.strerror}") from error
    if len(content) > _CONFIG_BYTES_MAX:
        raise usage(f"the configuration {name} is larger than {text.size(_CONFIG_BYTES_MAX)}")
    try:
        document = json.loads(content)
    except ValueError as error:
        raise usage(f"the configuration {name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise usage(f"the configuration {name} is not a JSON object")
    return document


def _split_vm(value: str) -> tuple[str, list[str]]:
    name, separator, rest = value.partition("=")
    parts = rest.split(",")
    if not name or not separator or not all(parts):
        raise usage(
            f"--vm {value} is not NAME=PATH[,PATH…]", hint="for paths with commas use --config"
        )
    return name, [str(Path(part).absolute()) for part in parts]


def _parse_image_vm(value: str) -> dict[str, Any]:
    name, disks = _split_vm(value)
    return {"name": name, "disks": disks}


def _parse_qemu_vm(value: str) -> dict[str, Any]:
    name, sockets = _split_vm(value)
    if len(sockets) > 2:  # noqa: PLR2004 - a QMP socket and an agent socket
        raise usage(f"--vm {value} names more than a QMP and an agent socket")
    return {"name": name, "qmp": sockets[0], "agent": sockets[1] if len(sockets) > 1 else None}
