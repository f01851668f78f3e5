"""The client of Cliniko's API. It uses neither Dagster, nor a database, nor environment variables."""
