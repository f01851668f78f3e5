"""Benchmarks of the pipeline. `python -m benchmarks --list` lists them."""
