"""The start, the liveness, the progress and the failures of runs."""
