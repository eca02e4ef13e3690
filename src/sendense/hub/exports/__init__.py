"""Exports of what the hub knows, into repositories, and back."""
