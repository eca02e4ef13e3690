"""VMs of VMware vSphere, by vCenter's API and the user's own VDDK."""
