"""Sources: the platforms that VMs are read from."""
