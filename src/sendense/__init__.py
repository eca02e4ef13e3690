"""Sendense: a backup hub for virtual machines."""

import os

__version__ = "0.1.0"

# numpy's linear algebra is never used, but starts a thread for each core that spins for a while:
# a tenth of a second of each core at every start. Only what is set before the first import counts.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
