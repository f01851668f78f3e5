"""What the benchmark of syncs measures, each a module with a `run`: ours, and others beside it.

`python -m benchmarks.others NAME` runs one of them in a process of its own; see `measuring`.
"""
