"""The HTTP service with active patients, syncs, webhooks, monitoring and the web page.

`application.py` builds the service, and `routes/` has one file per resource. The package does not import Dagster. To
request syncs, it calls Dagster's webserver over GraphQL.
"""
