"""Sources on a simulated vCenter."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from demo.vcenter.lab import Vcenter
from sendense.connectors.vsphere import config
from sendense.connectors.vsphere.session import Session
from sendense.connectors.vsphere.source import VsphereSource
from sendense.core.clock import ManualClock

OWNER = "hub-0123456789abcdef"

OpenSource = Callable[..., VsphereSource]
OpenSession = Callable[..., Session]


def settings_of(vcenter: Vcenter, **more: Any) -> config.VsphereConfig:
    """Return the configuration of a source, changed."""
    given = vcenter.describe()
    credentials = {**vcenter.credentials, **more.pop("credentials", {})}
    wanted = {key: value for key, value in {**given, **more}.items() if value is not None}
    return config.parse(wanted, credentials, Path)


@pytest.fixture
def open_source(vcenter: Vcenter, tmp_path: Path) -> Iterator[OpenSource]:
    """Open sources whose clock does not wait; they are closed at the end."""
    with ExitStack() as stack:

        def open_one(lab: Vcenter = vcenter, *, owner: str = OWNER, **more: Any) -> VsphereSource:
            source = VsphereSource(
                settings_of(lab, **more), tmp_path / "scratch", owner, clock=ManualClock()
            )
            return stack.enter_context(closing(source))

        yield open_one


@pytest.fixture
def open_session(vcenter: Vcenter) -> Iterator[OpenSession]:
    """Open sessions; they are closed at the end."""
    with ExitStack() as stack:

        def open_one(lab: Vcenter = vcenter, **more: Any) -> Session:
            keep_alive = more.pop("keep_alive_seconds", 300.0)
            session = Session(settings_of(lab, **more), keep_alive_seconds=keep_alive)
            return stack.enter_context(session)

        yield open_one


@contextlib.contextmanager
def delayed(vcenter: Vcenter, method: str, seconds: float) -> Iterator[None]:
    """Let a method take its time."""
    vcenter.trouble.delays[method] = seconds
    try:
        yield
    finally:
        vcenter.trouble.delays.pop(method)
