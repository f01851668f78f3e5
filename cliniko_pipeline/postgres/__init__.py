"""All that is stored: engine, organization context, migrations, bulk merge, embedded server.

Knows no Dagster, no HTTP.
"""
