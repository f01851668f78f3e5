"""The metadata that the Dagster UI shows."""
