"""Python runs this at each start, from PYTHONPATH: it puts stops into workers of the kill suite.

The product itself has no hooks for tests; the very same `sendense worker` is stopped from outside.
"""

import os
import sys
from pathlib import Path

if "worker" in sys.orig_argv and "SENDENSE_TEST_STOPS" in os.environ:
    from tests.kill import stops

    stops.install(Path(os.environ["SENDENSE_TEST_STOPS"]))
