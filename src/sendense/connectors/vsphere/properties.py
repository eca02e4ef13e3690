"""Reads properties of many objects in few questions: the one way to the PropertyCollector.

Rule 6 of the sources' design: leaf paths, paged, never attribute by attribute. An object that is
gone, or that the user may not see, is reported by itself and fails nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim, vmodl

from sendense.connectors.vsphere import failure
from sendense.connectors.vsphere.session import NO_ANSWER, Login, Session, moref_of
from sendense.core.errors import NotFound, ProtocolError

PAGE_OBJECTS_MAX = 250  # a megabyte or two of devices; seconds on a slow line, not minutes
PAGES_MAX = 4000  # a million objects, above what a vCenter holds

_Collector = vmodl.query.PropertyCollector


@dataclass(frozen=True, slots=True)
class Found:
    """What was told.

    Attributes:
        values: by object reference and path; a path without a value is not there.
        missing: why nothing, or not everything, was told of an object, in words.
        faults: the same, as vCenter said it.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    faults: dict[str, Exception] = field(default_factory=dict)


def read(
    session: Session, kind: type, morefs: Sequence[str] | None, paths: Sequence[str], *, doing: str
) -> Found:
    """Return properties of objects of a kind, or of all that there are where `morefs` is None.

    Raises what `Session.run` does.
    """
    if morefs is not None and not morefs:
        return Found()

    def collect(login: Login) -> Found:
        found = Found()
        if morefs is None:
            view = login.content.viewManager.CreateContainerView(
                container=login.content.rootFolder, type=[kind], recursive=True
            )
            try:
                _collect(login, _ask_view(view, kind, paths), found)
                login.require_alive()
            finally:
                with contextlib.suppress(*NO_ANSWER):
                    view.Destroy()  # goes with the session at the latest
            return found
        for start in range(0, len(morefs), PAGE_OBJECTS_MAX):
            page = morefs[start : start + PAGE_OBJECTS_MAX]
            _collect_named(login, kind, page, paths, found)
        return found

    return session.run(doing, collect)


def read_one(
    session: Session, kind: type, moref: str, paths: Sequence[str], *, doing: str
) -> Mapping[str, Any]:
    """Return properties of one object: what is not among them has no value.

    Raises NotFound, kind `vm-gone`, and what the fault means where some may not be read: who looks
    for snapshots must not take those that he may not see for none.
    """
    found = read(session, kind, [moref], paths, doing=doing)
    if moref in found.faults:
        fault = found.faults[moref]
        raise failure.translate(fault, doing=doing) from fault
    if moref not in found.values:
        raise NotFound(
            f"cannot {doing}: vCenter does not know it any more",
            kind="vm-gone",
            hint="discover the source again",
        )
    return found.values[moref]


def _collect_named(
    login: Login, kind: type, morefs: Sequence[str], paths: Sequence[str], found: Found
) -> None:
    rest = list(morefs)
    while rest:
        try:
            objects = [login.bind(kind, one) for one in rest]
            _collect(login, _ask_objects(objects, kind, paths), found)
        except (vmodl.fault.ManagedObjectNotFound, vim.fault.NoPermission) as error:
            # One that is gone or hidden fails the whole question: the others are asked for without.
            moref = _find_refused(error)
            if moref not in rest:
                raise
            rest.remove(moref)
            _miss(found, moref, error, failure.explain(error))
        else:
            break
    if any(one not in found.values for one in rest):
        login.require_alive()


def _find_refused(error: Any) -> str | None:
    """Return which object a fault is about; None for a session that ended, which is about none."""
    if isinstance(error, vim.fault.NotAuthenticated):
        return None
    managed = error.obj if isinstance(error, vmodl.fault.ManagedObjectNotFound) else error.object
    return getattr(managed, "_moId", None)


def _collect(login: Login, question: Any, found: Found) -> None:
    for told in _list_pages(login, question):
        moref = moref_of(told.obj)
        values = found.values.setdefault(moref, {})
        values.update({one.name: one.val for one in told.propSet})
        for missing in told.missingSet or ():
            reason = f"{missing.path}: {failure.explain(missing.fault)}"
            _miss(found, moref, missing.fault, reason)


def _miss(found: Found, moref: str, fault: Exception, reason: str) -> None:
    found.missing[moref] = reason
    found.faults[moref] = fault


def _list_pages(login: Login, question: Any) -> Iterator[Any]:
    collector = login.content.propertyCollector
    options = _Collector.RetrieveOptions(maxObjects=PAGE_OBJECTS_MAX)
    page = collector.RetrievePropertiesEx([question], options)
    for _ in range(PAGES_MAX):
        if page is None:
            return
        yield from page.objects
        if not page.token:
            return
        page = collector.ContinueRetrievePropertiesEx(page.token)
    raise ProtocolError(
        f"vCenter lists more than {PAGES_MAX * PAGE_OBJECTS_MAX} objects",
        kind="vsphere-answer-odd",
    )


def _ask_view(view: Any, kind: type, paths: Sequence[str]) -> Any:
    through = _Collector.TraversalSpec(
        name="view", type=vim.view.ContainerView, path="view", skip=False
    )
    return _Collector.FilterSpec(
        objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[through])],
        propSet=[_Collector.PropertySpec(type=kind, pathSet=list(paths))],
    )


def _ask_objects(objects: Sequence[Any], kind: type, paths: Sequence[str]) -> Any:
    return _Collector.FilterSpec(
        objectSet=[_Collector.ObjectSpec(obj=one) for one in objects],
        propSet=[_Collector.PropertySpec(type=kind, pathSet=list(paths))],
    )
