"""PostgreSQL: engine, organization context, migrations, bulk merge, embedded server.

This package imports neither Dagster nor an HTTP client.
"""
