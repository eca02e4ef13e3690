"""Arguments may be names or ids; here a name becomes the id the API wants."""

from sendense.cli.client import Api
from sendense.cli.failure import ExitCode, Failure, usage

_NOUNS = {"sources": "source", "vms": "VM", "repositories": "repository"}

_ID_LENGTH_MAX = 100  # of the catalog's columns


def find_id(api: Api, noun: str, name_or_id: str) -> str:
    """Return the id of a source, VM or repository given by id or by its exact name.

    Raises Failure: not found, or a conflict that lists the candidates of an ambiguous name. An id
    wins over a name.
    """
    if not name_or_id:
        raise usage(f"the {_NOUNS[noun]}'s name is empty")
    if _may_be_id(name_or_id):
        try:
            return str(api.get(noun, name_or_id).data["id"])
        except Failure as problem:
            if problem.code not in {ExitCode.NOT_FOUND, ExitCode.USAGE}:
                raise
    filters = {"name": name_or_id} if noun == "vms" else {}  # thousands of VMs, a few of the rest
    named = [entry for entry in api.list_all(noun, **filters) if entry.get("name") == name_or_id]
    # A VM that its source no longer has yields to one of the same name that it has.
    named = [entry for entry in named if entry.get("present", True)] or named
    if not named:
        raise Failure(
            f"{_NOUNS[noun]} {name_or_id} is not known to the server",
            ExitCode.NOT_FOUND,
            hint=f"`sendense {_command(noun)} list` shows what there is",
        )
    if len(named) > 1:
        raise Failure(
            f"{_NOUNS[noun]} name {name_or_id} is ambiguous: {len(named)} have it",
            ExitCode.CONFLICT,
            hint="give the id instead",
            candidates=tuple(
                f"{entry['id']} ({entry.get('path') or entry.get('source_id') or ''})"
                for entry in named
            ),
        )
    return str(named[0]["id"])


def _may_be_id(text: str) -> bool:
    return text.isascii() and text.replace("-", "").isalnum() and len(text) <= _ID_LENGTH_MAX


def _command(noun: str) -> str:
    return {"sources": "source", "vms": "vm", "repositories": "repository"}[noun]
