"""Contenders of the benchmark of syncs. `run` of a contender reads an account and returns the measurement."""
