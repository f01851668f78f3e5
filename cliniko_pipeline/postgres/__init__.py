"""All that is stored: engine and organization context, migrations, bulk merge, embedded server. Knows no Dagster, no HTTP."""
