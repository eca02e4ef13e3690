"""Image files (raw, qcow2) and block devices on the worker's own machine; no change tracking."""
