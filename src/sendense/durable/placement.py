"""Placement: which workers may run a workflow, and the queues that follow from it.

A workflow may demand labels; a worker may run it that has them all. Each set of demanded labels in
use has queues of its own, whose names say the set. A worker listens, from its start, to the names
of all subsets of its labels: that costs nothing, since only a queue that exists costs a thread.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

Labels = Mapping[str, str]

LABELS_MAX = 8  # of a worker: it listens to the names of 2 to this power sets
HOST = "host"  # the label that each worker has by itself

KEY_PATTERN = r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?"
VALUE_PATTERN = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"


def parse(text: str) -> tuple[str, str]:
    """Return the label that is written as `key=value`. Raises ValueError with a reason."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"label {text!r} must be written as key=value")
    if not re.fullmatch(KEY_PATTERN, key):
        raise ValueError(f"{key!r} is no key of a label: a-z, 0-9 and . _ / - inside, at most 63")
    if not re.fullmatch(VALUE_PATTERN, value):
        raise ValueError(
            f"{value!r} is no value of a label: letters, digits and . _ - inside, at most 253"
        )
    return key, value


def describe(labels: Labels) -> str:
    """Return labels as people write them, in a fixed order."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def fits(labels: Labels, required: Labels) -> bool:
    """Whether a worker with these labels may run what demands those."""
    return required.items() <= labels.items()


def explain(required: Labels, live: Sequence[Labels]) -> str | None:
    """Return why nobody alive can run what demands these labels; None where somebody can."""
    if any(fits(labels, required) for labels in live):
        return None
    return f"no worker with {describe(required)} is alive" if required else "no worker is alive"


def queue_of(base: str, required: Labels) -> str:
    """Return the name of a queue: the same set of labels always gives the same name."""
    if not required:
        return base
    return f"{base}:{','.join(f'{key}={value}' for key, value in sorted(required.items()))}"


def list_queues(bases: Sequence[str], labels: Labels) -> list[str]:
    """Return the names of all queues whose work a worker with these labels may take."""
    assert len(labels) <= LABELS_MAX, f"{len(labels)} labels"
    return [queue_of(base, some) for some in _list_subsets(labels) for base in bases]


def _list_subsets(labels: Labels) -> Iterator[Labels]:
    items = sorted(labels.items())
    for size in range(len(items) + 1):
        for some in combinations(items, size):
            yield dict(some)
