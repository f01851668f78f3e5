"""The contenders of the benchmark of syncs: the `run` of each module reads an account and returns what it took."""
