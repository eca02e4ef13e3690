"""What the product does, one file per use case; each reads as its list of steps.

Names of workflows and steps are part of stored jobs and never change; `registry` lists them.
"""
