"""Workers: the processes that run jobs, and what they may run."""
