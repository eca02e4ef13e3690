"""Verification: are the stored bytes still those that were written? See docs/format.md."""
