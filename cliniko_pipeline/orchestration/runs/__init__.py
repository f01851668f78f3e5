"""Runs: in-process runs, liveness, progress, failures, backfills."""
