"""The HTTP service: active patients to read, syncs to request and follow, webhooks to receive, a page to look at.

Knows no Dagster: runs are requested of its webserver over GraphQL. `application.create_application` puts all together.
"""
