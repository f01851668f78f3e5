"""Benchmarks: `python -m benchmarks --list` names them. Neither tests nor part of the package."""
