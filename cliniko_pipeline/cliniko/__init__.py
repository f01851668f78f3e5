"""The client of Cliniko's API. Knows no Dagster and no database, and reads no environment."""
