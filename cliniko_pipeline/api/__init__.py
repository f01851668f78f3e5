"""The HTTP service: active patients, syncs, webhooks, monitoring, and the web page.

`application.py` puts it together; `routes/` has one file for each resource. It imports no Dagster: syncs are requested
from Dagster's webserver over GraphQL.
"""
