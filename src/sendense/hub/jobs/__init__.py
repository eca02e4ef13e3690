"""Jobs: executions that a user can see and cancel."""
