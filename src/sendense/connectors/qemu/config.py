"""The configuration of a `qemu` source: `{"vms": [{"name", "qmp", "agent"}]}`, and a limit.

The limit is `impact`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sendense.connectors import impact
from sendense.connectors.config import (
    NAME_LENGTH_MAX,
    VMS_MAX,
    PathPolicy,
    Problems,
    check_keys,
    check_list,
    check_names_unique,
    check_path,
    check_text,
)


@dataclass(frozen=True, slots=True)
class VmAddress:
    """A VM as the user registered it.

    Attributes:
        qmp: path of a QMP socket that nobody else uses.
        agent: path of the guest agent's socket, or None.
    """

    name: str
    qmp: str
    agent: str | None


def parse(config: Mapping[str, Any], resolve: PathPolicy) -> list[VmAddress]:
    """Read a configuration.

    Raises Invalid naming every wrong field, or Denied for a socket outside the allowed places.
    """
    problems = Problems()
    given = check_keys(config, "config", problems, required={"vms"}, optional={*impact.FIELDS})
    impact.check(given, problems, measures=None)
    vms = check_list(given.get("vms"), "config.vms", problems, most=VMS_MAX)
    addresses = [_parse_vm(vm, f"config.vms[{i}]", problems) for i, vm in enumerate(vms)]
    check_names_unique([address.name for address in addresses], problems)
    sockets = [address.qmp for address in addresses]
    for index, path in enumerate(sockets):
        if path and path in sockets[:index]:
            problems.add(f"config.vms[{index}].qmp", f"stands twice: {path}")
    problems.raise_if_any()
    for address in addresses:
        resolve(address.qmp)
        if address.agent is not None:
            resolve(address.agent)
    return addresses


def _parse_vm(value: Any, field: str, problems: Problems) -> VmAddress:
    vm = check_keys(value, field, problems, required={"name", "qmp"}, optional={"agent"})
    agent = vm.get("agent")
    return VmAddress(
        name=check_text(vm.get("name"), f"{field}.name", problems, most=NAME_LENGTH_MAX),
        qmp=check_path(vm.get("qmp"), f"{field}.qmp", problems),
        agent=None if agent is None else check_path(agent, f"{field}.agent", problems),
    )
