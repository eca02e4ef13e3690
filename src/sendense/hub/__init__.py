"""The control plane: one folder per thing a user manages, the same four files in each.

`routes` speak HTTP and own the transaction, `schemas` are the shapes of requests and answers,
`service` decides and checks, `queries` read and write the catalog. Neither of the last two commits.
"""
