"""A platform in memory for tests, with the faults of real ones; never offered over the API."""
