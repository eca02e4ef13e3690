"""VMs and their disks, as discovery last saw them."""
