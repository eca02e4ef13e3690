"""How long everything about leases takes, in parts of one lease, so that the parts fit together.

    0      the last beat
    1/8    the next beat; each may fail and be tried again until …
    0.4    a worker that is frozen is ended by others of its machine (8 looks, 1/20 apart)
    0.8    a worker that could not renew its lease ends itself
    1.5    a worker that nobody could look at is dead, and its jobs are given away

A healthy worker that cannot beat because a frozen one holds SQLite's write lock has at least
0.8 - 1/8 = 0.675 of a lease until it ends itself, and the frozen one has 0.45 at most.
"""

import time

BEATS_PER_LEASE = 8
PULSES_PER_LEASE = 20
FROZEN_LOOKS = 8
STALE_SHARE = 0.8
DEAD_SHARE = 1.5
# The least time that a sweep itself saw no beat before the clock may tell death: the database's
# clock may jump, and then every lease looks old at once. Longer than STALE_SHARE.
UNCHANGED_SHARE = 1.0


def awake_seconds() -> float:
    """Return monotonic seconds that go on while the machine sleeps and that nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
