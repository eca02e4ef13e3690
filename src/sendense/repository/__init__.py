"""The chunk store and its format: a library that needs no server and no database."""
