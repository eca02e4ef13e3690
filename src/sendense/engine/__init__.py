"""The data plane that moves bytes: backup, restore, and what they share.

Knows connectors, repositories and NBD; knows no job engine, no database and no web framework.
"""
