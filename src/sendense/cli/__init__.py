"""The command line: a client of the API, and of a repository alone where there is no server."""
