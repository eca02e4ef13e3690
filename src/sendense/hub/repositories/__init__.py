"""Repositories: the places that hold backups."""
