"""The way to the bytes of a disk: one NBD address for each (VM, snapshot, disk)."""
