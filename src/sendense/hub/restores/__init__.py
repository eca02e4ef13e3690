"""Restores: what is read back from backups."""
