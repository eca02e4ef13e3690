"""Platforms that VMs are read from. `base` says what each connector promises."""
