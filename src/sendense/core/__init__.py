"""The vocabulary of the product: standard library only; no files, sockets or SQL."""
