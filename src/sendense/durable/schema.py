"""The constants that every process which touches the engine's database must agree on."""

# The version of the schema of workflows: names of workflows and steps, their order, their
# arguments. Raised only together with code that still runs the jobs of the version before; a
# version taken from the code, DBOS's default, would strand running jobs at each edit.
VERSION = "workflows-1"

APPLICATION = "sendense"

# Each queue costs a thread and a poll in every worker that may take from it: two, and two more for
# each set of labels that is demanded somewhere; see placement.py.
JOBS = "jobs"  # what users see; not partitioned
TRANSFERS = "transfers"  # children that move bytes; partitioned by source

# Lower runs first. Always set: DBOS treats an unset priority as the highest.
PRIORITY_RESTORE = 10  # somebody is waiting
PRIORITY_INTERACTIVE = 20  # asked for by a person or a client
PRIORITY_HOUSEKEEPING = 50  # nobody waits


def job_id_of(workflow_id: str) -> str:
    """Return the job that a workflow works for: the part before the first slash."""
    return workflow_id.partition("/")[0]
