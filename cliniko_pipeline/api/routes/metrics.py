"""`/metrics`, the request counts and the state of each organization for Prometheus."""

import time
from collections.abc import Iterable, Mapping

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliniko_pipeline.api.gate import Administrator, RuntimeDependency
from cliniko_pipeline.api.problems import documented
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling, webhooks
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.operator_tables.webhooks import PendingEvents

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

router = APIRouter(tags=["monitoring"])

# Without this call, every counter has an additional line with the time of its creation.
disable_created_metrics()


class RequestMetrics:
    """Counts and durations of requests by route, in the application's own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cliniko_api_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cliniko_api_request_seconds",
            "Seconds from a request to the start of its response.",
            ["method", "route"],
            registry=self.registry,
        )


class MeasuredRequests:
    """Middleware that measures requests. Labels have the route's template, because a path contains ids."""

    def __init__(self, application: ASGIApp, metrics: RequestMetrics) -> None:
        self._application = application
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and measure it."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._metrics.requests.labels(method, route, message["status"]).inc()
                self._metrics.seconds.labels(method, route).observe(time.perf_counter() - started)
            await send(message)

        await self._application(scope, receive, send_measured)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "The metrics in Prometheus's format.",
        },
        **documented(401, 403, 429, 503),
    },
)
def get_metrics(request: Request, runtime: RuntimeDependency, principal: Administrator) -> Response:
    """Return request counts, and the state of each organization that the token may access."""
    with runtime.database.operator() as connection:
        visible = [row for row in organizations.organizations(connection) if principal.sees(row.id)]
        states = {state.organization_id: state for state in scheduling.schedulings(connection)}
        pending = webhooks.pending_events(connection)
    metrics: RequestMetrics = request.app.state.metrics
    registry = CollectorRegistry()
    registry.register(_OrganizationCollector(visible, states, pending))
    return Response(generate_latest(metrics.registry) + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _OrganizationCollector(Collector):
    def __init__(
        self, found: list[Organization], states: Mapping[str, Scheduling], pending: Mapping[str, PendingEvents]
    ) -> None:
        self._organizations = found
        self._states = states
        self._pending = pending

    def collect(self) -> Iterable[Metric]:
        succeeded = _gauge("cliniko_last_success_timestamp_seconds", "Time of the last successful complete sync.")
        verified = _gauge(
            "cliniko_verified_timestamp_seconds", "Time at which a sync or a probe last found the stored rows right."
        )
        failures = _gauge("cliniko_failures_in_a_row", "Consecutive failed syncs.")
        paused = _gauge("cliniko_paused", "1 if syncs are paused until the credentials change.")
        checks = _gauge("cliniko_failed_checks", "Failed asset checks.")
        waiting = _gauge(
            "cliniko_pending_webhooks", "Webhook events received since the start of the last complete sync."
        )
        for organization in self._organizations:
            labels = [organization.id]
            state, pending = self._states.get(organization.id), self._pending.get(organization.id)
            waiting.add_metric(labels, 0 if pending is None else pending.events)
            if state is not None and state.succeeded_at is not None:
                succeeded.add_metric(labels, state.succeeded_at.timestamp())
            if organization.verified_at is not None:
                verified.add_metric(labels, organization.verified_at.timestamp())
            failures.add_metric(labels, 0 if state is None else state.failures)
            paused.add_metric(labels, organization.pause_reason is not None)
            checks.add_metric(labels, len(organization.failed_checks))
        return [succeeded, verified, failures, paused, checks, waiting]


def _gauge(name: str, description: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, description, labels=["organization"])
