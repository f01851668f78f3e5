"""Syncs as the API describes them, from Dagster's run and the row of `cliniko.sync_runs`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial, wraps
from http import HTTPStatus
from typing import Annotated, Any, ParamSpec, TypeVar
from uuid import UUID

import anyio.to_thread
from fastapi import Depends, Request
from pydantic import AwareDatetime, BaseModel, Field

from cliniko_pipeline.api.dagster_runs import (
    DagsterDependency,
    DagsterRun,
    DagsterRuns,
    DagsterUnavailableError,
    SyncStatus,
)
from cliniko_pipeline.api.gate import (
    Gate,
    GateDependency,
    Principal,
    RuntimeDependency,
    authenticate_follower,
    authenticate_syncer,
)
from cliniko_pipeline.api.problems import not_found
from cliniko_pipeline.postgres.operator_tables import organizations, sync_runs
from cliniko_pipeline.postgres.operator_tables.sync_runs import StoredSync
from cliniko_pipeline.runtime import Runtime

PROCESS_ENDED = "The process of the sync ended early; the next sync resumes at its checkpoint."


class SyncProgress(BaseModel):
    """Progress of a running sync, as last stored."""

    resource: str = Field(examples=["individual_appointments"])
    records_read: int = Field(examples=[4200], description="Records of this resource read so far.")
    records: int = Field(examples=[6265], description="All records of this resource.")
    requests: int = Field(examples=[57], description="Requests to Cliniko so far, for all resources.")
    seconds_left: float | None = Field(
        examples=[38.5], description="Estimated time left for this resource. null if there is no estimate yet."
    )
    at: AwareDatetime


class SyncedTable(BaseModel):
    """The result of a sync in one of its tables."""

    name: str = Field(examples=["active_patients"])
    status: str = Field(examples=["succeeded"])
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    counts: dict[str, int] = Field(examples=[{"rows": 225, "inserted": 3, "updated": 222, "deleted": 1}])
    error: str | None


class Sync(BaseModel):
    """A sync with its status, progress and results."""

    id: UUID
    organization_id: str = Field(examples=["surf-rehab"])
    status: SyncStatus
    full: bool | None = Field(description="Whether this is a full sync. null if not known yet.")
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    requests: int = Field(description="Requests to Cliniko.")
    seconds_waited: float = Field(description="Seconds waited for Cliniko's rate limit.")
    progress: SyncProgress | None = Field(description="Set only while the sync is running.")
    tables: list[SyncedTable]
    error: str | None = Field(description="Why the sync, or a step of a running sync, failed.", examples=[None])
    url: str = Field(description="The run in the Dagster UI.", examples=["https://dagster.example.org/runs/..."])


@dataclass(frozen=True)
class SyncFinder:
    """Finder of syncs for one request."""

    request: Request
    gate: Gate
    runtime: Runtime
    dagster: DagsterRuns

    def find(self, principal: Principal, run_id: str, organization_id: str | None = None) -> Sync:
        """Return the sync. Without `organization_id`, look up the organization of the sync.

        Raise ProblemError (404) if the sync does not exist or the token may not access its organization. Raise
        DagsterUnavailableError if the sync is not stored and Dagster cannot be reached.
        """
        unavailable: DagsterUnavailableError | None = None
        try:
            run = self.dagster.find(run_id)
        except DagsterUnavailableError as error:
            run, unavailable = None, error
        if organization_id is None:
            organization_id = self._stored_owner(principal, run_id) if run is None else run.organization_id
        if organization_id is None:
            raise unavailable or not_found()
        if not principal.sees(organization_id):
            raise self.gate.refuse(self.request, "another organization", HTTPStatus.NOT_FOUND, principal)
        with self.runtime.database.organization(organization_id) as connection:
            stored = sync_runs.sync(connection, run_id)
        if run is None and stored is None:
            raise unavailable or not_found()
        return describe_sync(self.runtime, organization_id, stored, run)

    def latest_runs(self, organization_id: str, limit: int) -> Sequence[DagsterRun]:
        """Return Dagster's latest runs of the organization, or no runs if Dagster cannot be reached."""
        try:
            return self.dagster.list_latest(organization_id, limit)
        except DagsterUnavailableError:
            return ()  # stored syncs can be listed without Dagster

    def _stored_owner(self, principal: Principal, run_id: str) -> str | None:
        with self.runtime.database.operator() as connection:
            visible = [row.id for row in organizations.organizations(connection) if principal.sees(row.id)]
        for organization_id in visible:
            with self.runtime.database.organization(organization_id) as connection:
                if sync_runs.sync(connection, run_id) is not None:
                    return organization_id
        return None


def sync_finder(
    request: Request, gate: GateDependency, runtime: RuntimeDependency, dagster: DagsterDependency
) -> SyncFinder:
    """Return the finder of this request."""
    return SyncFinder(request, gate, runtime, dagster)


SyncFinderDependency = Annotated[SyncFinder, Depends(sync_finder)]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def needs_dagster(function: Callable[_P, _T]) -> Callable[_P, Awaitable[_T]]:
    """Make a function with the parameter `finder` wait for a slot of DagsterRuns, then run in a thread."""

    @wraps(function)
    async def run_in_slot(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        finder = kwargs["finder"]
        assert isinstance(finder, SyncFinder)  # noqa: S101 (FastAPI injects it)
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=finder.dagster.slots)

    return run_in_slot


def sync_for(authenticate: Callable[..., Principal]) -> Callable[..., Awaitable[Sync]]:
    """Return a FastAPI dependency that provides the sync whose id is in the path."""

    @needs_dagster
    def visible_sync(
        finder: SyncFinderDependency, principal: Annotated[Principal, Depends(authenticate)], sync_id: UUID
    ) -> Sync:
        return finder.find(principal, str(sync_id))

    return visible_sync


FollowableSync = Annotated[Sync, Depends(sync_for(authenticate_follower))]
CancellableSync = Annotated[Sync, Depends(sync_for(authenticate_syncer))]


def describe_sync(runtime: Runtime, organization_id: str, stored: StoredSync | None, run: DagsterRun | None) -> Sync:
    """Return the sync from its stored row and Dagster's run. One of the two may be None.

    Stored values take precedence, except for the status: a killed process cannot store that it has ended.
    """
    known: dict[str, Any] = {}
    if run is not None:
        known |= {"run_id": run.run_id, "is_full": run.is_full}
        known |= {"started_at": run.started_at, "finished_at": run.ended_at}
    if stored is not None:
        known |= {name: value for name, value in asdict(stored).items() if value is not None}
    status = SyncStatus(known["status"]) if run is None else run.status
    progress = _progress(stored) if stored is not None and status is SyncStatus.RUNNING else None
    error = known.get("error") or (PROCESS_ENDED if status is SyncStatus.FAILED else None)
    return Sync(
        id=UUID(known["run_id"]),
        organization_id=organization_id,
        status=status,
        full=known.get("is_full"),
        started_at=known.get("started_at"),
        finished_at=known.get("finished_at") if status.has_ended else None,
        requests=progress.requests if progress is not None else known.get("requests", 0),
        seconds_waited=known.get("seconds_waited", 0.0),
        progress=progress,
        tables=[] if stored is None else _tables(stored),
        error=error if status in {SyncStatus.FAILED, SyncStatus.RUNNING} else None,
        url=f"{runtime.settings.ui_url}/runs/{known['run_id']}",
    )


def _progress(stored: StoredSync) -> SyncProgress | None:
    progress = stored.progress
    if progress is None:
        return None
    at = datetime.fromisoformat(progress["at"])
    # At `begun_at`, this run had read its first page already. In a resumed crawl, that is not page 1.
    read, left = progress["pages_read"] - progress.get("first_page", 1), progress["pages"] - progress["pages_read"]
    seconds = (at - datetime.fromisoformat(progress["begun_at"])).total_seconds()
    return SyncProgress(
        resource=progress["resource"],
        records_read=progress["records_read"],
        records=progress["records"],
        requests=stored.requests + progress["requests"],
        seconds_left=round(max(left, 0) * seconds / read, 1) if read > 0 else None,
        at=at,
    )


def _tables(stored: StoredSync) -> list[SyncedTable]:
    """Return the tables in the order in which they were started."""
    tables = [
        SyncedTable(
            name=name,
            status=result["status"],
            started_at=result.get("started_at"),
            finished_at=result.get("finished_at"),
            counts={key: value for key, value in result.items() if isinstance(value, int)},
            error=result.get("error"),
        )
        for name, result in stored.assets.items()
    ]
    return sorted(tables, key=lambda table: str(stored.assets[table.name].get("started_at")))
