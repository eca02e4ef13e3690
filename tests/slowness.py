"""How much slower this machine is now than an idle one with two cores.

What other processes take of caches and of the other half of a core makes even a process's own time
longer; a limit that grows with it still tells a slow product from a slow machine.
"""

import json
import time

FACTOR_MAX = 4.0  # beyond that nothing measured here tells anything
PROBE_SECONDS = 0.003  # what the fixed work takes on an idle core of two
_DOCUMENT = [{"name": f"backup {number}", "bytes": number} for number in range(100)]


def factor() -> float:
    """Return how much longer than alone the machine takes for the same work; from 1 to 4."""
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        for _ in range(45):
            json.loads(json.dumps(_DOCUMENT))
        best = min(best, time.thread_time() - began)
    return min(max(1.0, best / PROBE_SECONDS), FACTOR_MAX)
