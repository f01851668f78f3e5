"""Routes that report whether the process responds (`/healthz`) and the service is ready (`/readyz`)."""

import time
from http import HTTPStatus
from typing import Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from cliniko_pipeline.api.dagster_runs import DagsterDependency, DagsterRuns
from cliniko_pipeline.api.gate import RuntimeDependency
from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.runtime import Runtime

READINESS_SECONDS = 3

router = APIRouter(tags=["monitoring"])


class Health(BaseModel):
    """The process responds."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """State of the database and of Dagster. Without Dagster, only requests of syncs fail."""

    database: Literal["ok", "read_only", "unusable"]
    dagster: Literal["ok", "unreachable"]


@router.get("/healthz")
async def get_health() -> Health:
    """Return 200 as long as the process responds, even if all its threads are busy."""
    return Health()


_NOT_READY = {"model": Readiness, "description": "The database is unusable or read-only."}


@router.get("/readyz", responses={503: _NOT_READY})
async def get_readiness(
    request: Request, runtime: RuntimeDependency, dagster: DagsterDependency, response: Response
) -> Readiness:
    """Return 200 if the database accepts writes and has this version's schema. Results are cached for 3 seconds."""
    probe: ReadinessProbe = request.app.state.readiness
    readiness = await probe.latest(runtime, dagster)
    if readiness.database != "ok":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return readiness


class ReadinessProbe:
    """Cache of the readiness. Anybody may call the route, so one thread probes, at most once in READINESS_SECONDS."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._readiness: Readiness | None = None
        self._probed_at = 0.0

    async def latest(self, runtime: Runtime, dagster: DagsterRuns) -> Readiness:
        """Return the cached readiness, or probe again if it is too old."""
        async with self._lock:
            if self._readiness is None or time.monotonic() - self._probed_at > READINESS_SECONDS:
                self._readiness = await anyio.to_thread.run_sync(_probe, runtime, dagster, limiter=self._thread)
                self._probed_at = time.monotonic()
            return self._readiness


def _probe(runtime: Runtime, dagster: DagsterRuns) -> Readiness:
    return Readiness(
        database=_database_state(runtime.database), dagster="ok" if dagster.is_reachable() else "unreachable"
    )


def _database_state(database: Database) -> Literal["ok", "read_only", "unusable"]:
    try:
        schema.require_current(database)
    except ClinikoPipelineError:
        return "unusable"
    try:
        database.require_writable()
    except DatabaseUnavailableError:
        return "read_only"
    return "ok"
