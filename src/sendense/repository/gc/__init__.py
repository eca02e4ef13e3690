"""Garbage collection: frees what no backup needs, beside writers, without a lock or a clock."""
