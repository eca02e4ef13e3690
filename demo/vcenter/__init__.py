"""A vCenter for the demonstration and the tests: govmomi's simulator, and what it cannot do."""
