"""The demonstration: a real guest, backed up and restored through the REST API.

Run it by `./dev demo` or `python -m demo`. `demo.guest` builds and runs the tiny guest; the system
tests use it too.
"""
