"""The routes of the HTTP API, with one file per resource."""

from cliniko_pipeline.api.routes import active_patients, health, metrics, organizations, syncs, webhooks

ROUTERS = (organizations.router, active_patients.router, syncs.router, webhooks.router, health.router, metrics.router)
