"""What a user of a vCenter must be allowed to, for backups and for restores.

After VMware's "Credentials and Privileges for VMDK Access" and the reference of each method that is
called. A missing one often reads like a licence that is missing (rule 23), so they are asked for.
"""

from collections.abc import Collection

# On each VM that is backed up, and hence on a folder or datacenter above it.
BACKUP = (
    "System.Read",
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles",
)
# To switch tracking on where it is off: without it every backup reads everything.
TRACKING = ("VirtualMachine.Config.ChangeTracking",)
# At the vCenter itself: VDDK keeps a VM from being moved while it reads. Without, it can go on.
VCENTER = ("Global.DisableMethods", "Global.EnableMethods")
# In addition, where disks are written back.
RESTORE = (
    "Datastore.AllocateSpace",
    "VirtualMachine.Config.AddNewDisk",
    "VirtualMachine.Config.RemoveDisk",
    "VirtualMachine.Config.Settings",
    "VirtualMachine.Provisioning.DiskRandomAccess",
    "VirtualMachine.Provisioning.PutVmFiles",
)


def list_missing(wanted: Collection[str], held: Collection[str]) -> tuple[str, ...]:
    """Return those of the wanted privileges that are not held, in the order they are written."""
    return tuple(one for one in wanted if one not in held)
