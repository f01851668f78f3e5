"""Whether the service lives and can serve, for whoever starts it; and numbers for Prometheus."""

import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Literal

import anyio
import anyio.to_thread
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
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliniko_pipeline.api.dagster_runs import DagsterRuns
from cliniko_pipeline.api.gate import Administrator, Principal, RuntimeDependency
from cliniko_pipeline.api.problems import documented
from cliniko_pipeline.api.routes.syncs import DagsterDependency
from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling, webhooks
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.operator_tables.webhooks import PendingEvents
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.runtime import Runtime

READINESS_SECONDS = 3

router = APIRouter(tags=["watching"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """What the service needs. Without Dagster, or on a read-only database, everything can be read, and no sync be
    requested.
    """

    database: Literal["ok", "read_only", "unusable"]
    dagster: Literal["ok", "unreachable"]


# A second row for each number, of when it was begun.
disable_created_metrics()


class Measurements:
    """Requests, by route and status: one registry for the application, and none that other programs' tests share."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cliniko_api_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cliniko_api_request_seconds", "Until an answer begins.", ["method", "route"], registry=self.registry
        )


class MeasuredRequests:
    """Counts and times what passes through. Routes as they are written: their values name organizations."""

    def __init__(self, application: ASGIApp, measurements: Measurements) -> None:
        self._application = application
        self._measurements = measurements

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        begun = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._measurements.requests.labels(method, route, message["status"]).inc()
                self._measurements.seconds.labels(method, route).observe(time.perf_counter() - begun)
            await send(message)

        await self._application(scope, receive, send_measured)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@router.get("/healthz")
async def get_health() -> Health:
    """200 as long as the process answers, however busy its threads are."""
    return Health()


_NOT_READY = {"model": Readiness, "description": "The database cannot be used, or takes no writes at present."}


@router.get("/readyz", responses={503: _NOT_READY})
async def get_readiness(
    request: Request, runtime: RuntimeDependency, dagster: DagsterDependency, response: Response
) -> Readiness:
    """200 where the database takes writes and has this version's schema. It is looked at every few seconds only."""
    looks: ReadinessLooks = request.app.state.readiness
    found = await looks.latest(runtime, dagster)
    if found.database != "ok":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return found


class ReadinessLooks:
    """The last look, good for some seconds, and one at a time: anybody may ask, and each takes a thread."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._found: Readiness | None = None
        self._looked_at = 0.0

    async def latest(self, runtime: Runtime, dagster: DagsterRuns) -> Readiness:
        """Return it, after another look where it is old."""
        async with self._lock:
            if self._found is None or time.monotonic() - self._looked_at > READINESS_SECONDS:
                self._found = await anyio.to_thread.run_sync(_look, runtime, dagster, limiter=self._thread)
                self._looked_at = time.monotonic()
            return self._found


def _look(runtime: Runtime, dagster: DagsterRuns) -> Readiness:
    return Readiness(database=_state_of(runtime.database), dagster="ok" if dagster.is_reachable() else "unreachable")


def _state_of(database: Database) -> Literal["ok", "read_only", "unusable"]:
    try:
        schema.require_current(database)
    except ClinikoPipelineError:
        return "unusable"
    try:
        database.require_writable()
    except DatabaseUnavailableError:
        return "read_only"
    return "ok"


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "In Prometheus's format."},
        **documented(401, 403, 429, 503),
    },
)
def get_metrics(request: Request, runtime: RuntimeDependency, principal: Administrator) -> Response:
    """Requests, and where each organization stands that the token opens."""
    with runtime.database.operator() as connection:
        found = organizations.organizations(connection)
        states = scheduling.schedulings(connection)
        pending = webhooks.pending_events(connection)
    measurements: Measurements = request.app.state.measurements
    registry = CollectorRegistry()
    registry.register(_Organizations(found, states, pending, principal))
    return Response(generate_latest(measurements.registry) + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Organizations(Collector):
    def __init__(
        self,
        found: list[Organization],
        states: list[Scheduling],
        pending: Mapping[str, PendingEvents],
        principal: Principal,
    ) -> None:
        self._found = [each for each in found if principal.sees(each.id)]
        self._states = {each.organization_id: each for each in states}
        self._pending = pending

    def collect(self) -> Iterable[Metric]:
        labels = ["organization"]
        succeeded = GaugeMetricFamily(
            "cliniko_last_success_timestamp_seconds", "When a sync of everything last succeeded.", labels=labels
        )
        failures = GaugeMetricFamily("cliniko_failures_in_a_row", "How many syncs in a row have failed.", labels=labels)
        paused = GaugeMetricFamily("cliniko_paused", "1: not synced until its credentials change.", labels=labels)
        checks = GaugeMetricFamily("cliniko_failed_checks", "How many checks do not hold.", labels=labels)
        waiting = GaugeMetricFamily(
            "cliniko_pending_webhooks", "Webhooks received since the last whole sync began.", labels=labels
        )
        for each in self._found:
            waiting.add_metric([each.id], self._pending[each.id].events if each.id in self._pending else 0)
            state = self._states.get(each.id)
            if state is not None and state.succeeded_at is not None:
                succeeded.add_metric([each.id], state.succeeded_at.timestamp())
            failures.add_metric([each.id], 0 if state is None else state.failures)
            paused.add_metric([each.id], each.pause_reason is not None)
            checks.add_metric([each.id], len(each.failed_checks))
        return [succeeded, failures, paused, checks, waiting]
