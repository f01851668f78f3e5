"""What the Dagster UI shows besides the data."""
