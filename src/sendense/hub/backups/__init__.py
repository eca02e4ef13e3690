"""Backups: one VM at one time, and the chains that they form."""
