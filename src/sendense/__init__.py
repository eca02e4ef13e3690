"""Sendense: a backup hub for virtual machines."""

__version__ = "0.1.0"
