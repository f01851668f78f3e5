"""The client of Cliniko's API, without Dagster, database and environment variables."""
