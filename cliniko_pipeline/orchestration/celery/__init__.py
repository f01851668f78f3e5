"""Runs on Celery workers, whose processes execute many runs and import Dagster once (docs/celery.md)."""
