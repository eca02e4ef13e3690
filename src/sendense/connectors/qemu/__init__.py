"""The `qemu` connector: bare QEMU processes reached by their QMP sockets.

`qmp` and `agent` speak the two protocols, `nodes` names and finds block nodes and disks, `bitmaps`
decides about dirty bitmaps, `machine` is one VM under one open connection, `snapshot` takes and
removes a moment, `view` reads it, `meter` tells what that costs the guest, `source` is the `Source`
that the rest of the product sees.
"""
