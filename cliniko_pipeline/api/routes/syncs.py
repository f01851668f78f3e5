"""Syncs: requested, listed, followed while they go on, and cancelled."""

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial, wraps
from http import HTTPStatus
from typing import Annotated, Any, ParamSpec, TypeVar
from uuid import UUID

import anyio
import anyio.to_thread
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from cliniko_pipeline.api.dagster_runs import (
    DagsterRun,
    DagsterRuns,
    DagsterUnavailableError,
    RunNotEndedError,
    SyncStatus,
)
from cliniko_pipeline.api.gate import (
    FollowableOrganization,
    Follower,
    Gate,
    GateDependency,
    Principal,
    RuntimeDependency,
    SyncableOrganization,
    Syncer,
)
from cliniko_pipeline.api.problems import ProblemError, documented, not_found
from cliniko_pipeline.errors import ArgumentError, TransientError
from cliniko_pipeline.postgres.engine import advisory_key
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling, sync_runs
from cliniko_pipeline.postgres.operator_tables.sync_runs import StoredSync
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SyncOptions

SECONDS_BETWEEN_LOOKS = 1.0
"""How often somebody who follows a sync is told of it at most."""

_NEVER = datetime(9999, 1, 1, tzinfo=UTC)

ENDED_BY_ITSELF = "Its process ended before it did; the next sync goes on where it was."

router = APIRouter(prefix="/v1", tags=["syncs"])


class SyncRequest(BaseModel):
    """How the sync is to be."""

    model_config = ConfigDict(extra="forbid")

    full: bool = Field(
        default=False,
        strict=True,
        description="Read everything from the beginning, and mark what Cliniko no longer has as deleted. Otherwise:"
        " what has changed.",
    )


class AcceptedSync(BaseModel):
    """The sync that was requested, or the one that went on already."""

    id: UUID
    organization_id: str = Field(examples=["surf-rehab"])
    is_new: bool = Field(
        description="False: one was going on, queued, or requested with the same key, and is this one."
    )
    full: bool | None = Field(
        description="Whether this one reads everything, which may not be what was asked for; null: not known."
    )


class SyncProgress(BaseModel):
    """What a sync under way was doing when it last noted that."""

    resource: str = Field(examples=["individual_appointments"])
    records_read: int = Field(examples=[4200], description="Of this resource.")
    records: int = Field(examples=[6265], description="That the resource has.")
    requests: int = Field(examples=[57], description="So far, of the whole sync.")
    seconds_left: float | None = Field(examples=[38.5], description="An estimate, for this resource; none yet: null.")
    at: AwareDatetime


class SyncedTable(BaseModel):
    """What a sync did with one of its tables."""

    name: str = Field(examples=["active_patients"])
    status: str = Field(examples=["succeeded"])
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    counts: dict[str, int] = Field(examples=[{"rows": 225, "inserted": 3, "updated": 222, "deleted": 1}])
    error: str | None


class Sync(BaseModel):
    """A sync: where it stands and what came of it."""

    id: UUID
    organization_id: str = Field(examples=["surf-rehab"])
    status: SyncStatus
    full: bool | None = Field(description="Whether it reads everything; null where that is not known yet.")
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    requests: int = Field(description="To Cliniko.")
    seconds_waited: float = Field(description="For Cliniko's limit of requests.")
    progress: SyncProgress | None = Field(description="While it is running.")
    tables: list[SyncedTable]
    error: str | None = Field(description="Why it failed.", examples=[None])
    url: str = Field(description="The run in the Dagster UI.", examples=["https://dagster.example.org/runs/..."])


class SyncsPage(BaseModel):
    """Syncs, the latest first."""

    items: list[Sync]
    next_cursor: str | None = Field(description="For the next page; none after the last.")


def dagster_of(request: Request) -> DagsterRuns:
    """The application's way to Dagster."""
    return request.app.state.dagster


DagsterDependency = Annotated[DagsterRuns, Depends(dagster_of)]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def asks_dagster(function: Callable[_P, _T]) -> Callable[_P, Awaitable[_T]]:
    """Has a route or a dependency, one with `dagster`, run when it is its turn (see DagsterRuns)."""

    @wraps(function)
    async def in_turn(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        dagster = kwargs["dagster"]
        assert isinstance(dagster, DagsterRuns)  # noqa: S101 (by what it is for)
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=dagster.turns)

    return in_turn


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A text of your choice: the same request sent again leads to the same sync, even an ended one.",
    ),
]


@router.post(
    "/organizations/{organization_id}/syncs",
    status_code=HTTPStatus.ACCEPTED,
    responses=documented(400, 401, 403, 404, 409, 413, 422, 429, 503),
)
@asks_dagster
def request_sync(
    runtime: RuntimeDependency,
    dagster: DagsterDependency,
    principal: Syncer,
    organization: SyncableOrganization,
    wanted: SyncRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> AcceptedSync:
    """Launches a sync of the organization, unless one goes on or is queued: then that is the answer."""
    if not organization.is_active:
        raise ProblemError(HTTPStatus.CONFLICT, "The organization is disabled: the operator can enable it.")
    options = SyncOptions(full=False if wanted is None else wanted.full)
    idempotency = None if idempotency_key is None else _digest(principal.id, organization.id, idempotency_key)
    # Dagster would launch it, and its run would fail.
    runtime.database.require_writable()
    now = runtime.now()
    with runtime.database.operator() as connection:
        # Two requests at once would both find none that goes on.
        connection.execute(sa.text("set local lock_timeout = '20s'"))
        connection.execute(
            sa.text("select pg_advisory_xact_lock(:key)"),
            {"key": advisory_key("cliniko_pipeline.api", organization.id)},
        )
        existing = _existing(dagster, organization.id, options, idempotency)
        if existing is not None:
            return _accepted(organization.id, existing.run_id, is_new=False, full=existing.is_full)
        run_id = dagster.launch(organization.id, options, idempotency)
        # The schedule need not do at once what is done now.
        scheduling.note_requested(connection, {organization.id: options.full}, now)
    return _accepted(organization.id, run_id, is_new=True, full=options.full)


@router.get("/organizations/{organization_id}/syncs", responses=documented(401, 403, 404, 422, 429, 503))
@asks_dagster
def list_syncs(
    runtime: RuntimeDependency,
    dagster: DagsterDependency,
    organization: FollowableOrganization,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> SyncsPage:
    """The organization's syncs, however they were launched, the latest first."""
    before = None if cursor is None else _place(cursor)
    with runtime.database.organization(organization.id) as connection:
        stored = sync_runs.syncs(connection, limit + 1, before)
    runs = {run.run_id: run for run in _latest(dagster, organization.id, limit)}
    known = {each.run_id for each in stored}
    # What has not begun has noted nothing yet, and what was cancelled before never will.
    others = [run for run in runs.values() if run.run_id not in known] if before is None else []
    found: list[tuple[datetime, StoredSync | None, DagsterRun | None]] = [
        *((each.started_at, each, runs.get(each.run_id)) for each in stored),
        *((run.created_at, None, run) for run in others),
    ]
    found.sort(key=lambda each: each[0], reverse=True)
    items = [_sync(runtime, organization.id, noted, run) for _, noted, run in found[:limit]]
    last = next((noted for _, noted, _ in reversed(found[:limit]) if noted is not None), None)
    return SyncsPage(
        items=items, next_cursor=_cursor_after(last) if len(stored) > limit or len(found) > limit else None
    )


@asks_dagster
def sync_to_follow(
    request: Request,
    gate: GateDependency,
    runtime: RuntimeDependency,
    dagster: DagsterDependency,
    principal: Follower,
    sync_id: UUID,
) -> Sync:
    """The sync in the path, for whoever may follow it."""
    return _visible(request, gate, runtime, dagster, principal, str(sync_id))


@asks_dagster
def sync_to_cancel(
    request: Request,
    gate: GateDependency,
    runtime: RuntimeDependency,
    dagster: DagsterDependency,
    principal: Syncer,
    sync_id: UUID,
) -> Sync:
    """The sync in the path, for whoever may cancel it."""
    return _visible(request, gate, runtime, dagster, principal, str(sync_id))


async def place_to_follow(gate: GateDependency, principal: Follower) -> AsyncIterator[None]:
    """Hold one of the token's places for as long as the answer goes on."""
    with gate.following(principal):
        yield


@router.get("/syncs/{sync_id}", responses=documented(401, 403, 404, 422, 429, 503))
async def get_sync(sync: Annotated[Sync, Depends(sync_to_follow)]) -> Sync:
    """Where the sync stands: progress while it is running, then what came of it."""
    return sync


@router.get(
    "/syncs/{sync_id}/events",
    response_class=EventSourceResponse,
    dependencies=[Depends(place_to_follow)],
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def follow_sync(
    request: Request,
    gate: GateDependency,
    runtime: RuntimeDependency,
    dagster: DagsterDependency,
    principal: Follower,
    sync: Annotated[Sync, Depends(sync_to_follow)],
) -> AsyncIterator[ServerSentEvent]:
    """The same as server-sent events, whenever something has changed: `sync` while it goes on, `ended` at the end."""
    told = None
    while True:
        if sync.status.has_ended:
            yield ServerSentEvent(data=sync, event="ended")
            return
        if sync != told:
            yield ServerSentEvent(data=sync, event="sync")
            told = sync
        await anyio.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            await run_in_threadpool(gate.require_still_known, request)
            sync = await anyio.to_thread.run_sync(
                partial(_visible, request, gate, runtime, dagster, principal, str(sync.id), sync.organization_id),
                limiter=dagster.turns,
            )
        except ProblemError:
            return  # the sync is gone, or the token no longer good
        except TransientError:
            continue  # nothing is told before all can be asked again


@router.delete(
    "/syncs/{sync_id}", status_code=HTTPStatus.ACCEPTED, responses=documented(401, 403, 404, 409, 422, 429, 503)
)
@asks_dagster
def cancel_sync(
    request: Request,
    gate: GateDependency,
    runtime: RuntimeDependency,
    dagster: DagsterDependency,
    principal: Syncer,
    sync: Annotated[Sync, Depends(sync_to_cancel)],
) -> Sync:
    """Cancels the sync: at once where it is queued, soon where it is running. What it has stored stays, and the next
    one goes on from there. One that has ended is left as it is.
    """
    if sync.status.has_ended:
        return sync
    run = dagster.run(str(sync.id))
    if run is not None and run.is_terminal:
        raise ProblemError(HTTPStatus.CONFLICT, "The sync runs in a terminal: whoever started it can end it there.")
    runtime.database.require_writable()
    try:
        dagster.end(str(sync.id))
    except RunNotEndedError:
        after = _visible(request, gate, runtime, dagster, principal, str(sync.id))
        if not after.status.has_ended and after.status is not SyncStatus.CANCELLING:
            raise ProblemError(HTTPStatus.CONFLICT, "Dagster cannot end this run now: try again in a moment.") from None
        return after
    return _visible(request, gate, runtime, dagster, principal, str(sync.id))


def _accepted(organization_id: str, run_id: str, *, is_new: bool, full: bool | None) -> AcceptedSync:
    return AcceptedSync(id=UUID(run_id), organization_id=organization_id, is_new=is_new, full=full)


def _existing(
    dagster: DagsterRuns, organization_id: str, options: SyncOptions, idempotency: str | None
) -> DagsterRun | None:
    if idempotency is not None:
        before = dagster.requested_before(organization_id, idempotency)
        if before is not None and before.is_full != options.full:
            raise ArgumentError("This Idempotency-Key was sent with another request: choose a new one.")
        if before is not None:
            return before
    return dagster.going_on(organization_id)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def _cursor_after(last: StoredSync | None) -> str:
    """Where a page ended; the beginning of what has begun where it held nothing of that."""
    place = (_NEVER, str(UUID(int=0))) if last is None else (last.started_at, last.run_id)
    return base64.urlsafe_b64encode(f"{place[0].isoformat()} {place[1]}".encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        started_at, _, run_id = text.partition(" ")
        return datetime.fromisoformat(started_at).astimezone(UTC), str(UUID(run_id))
    except (ValueError, OverflowError):
        raise ArgumentError("The cursor is not one of these pages: send `next_cursor` as it was.") from None


def _latest(dagster: DagsterRuns, organization_id: str, limit: int) -> Sequence[DagsterRun]:
    try:
        return dagster.latest(organization_id, limit)
    except DagsterUnavailableError:
        return ()  # what the syncs have noted themselves is there all the same


def _visible(
    request: Request,
    gate: Gate,
    runtime: Runtime,
    dagster: DagsterRuns,
    principal: Principal,
    run_id: str,
    organization_id: str | None = None,
) -> Sync:
    """Raises ProblemError (404) where there is no such sync, or where it is another organization's: both alike."""
    unavailable: DagsterUnavailableError | None = None
    try:
        run = dagster.run(run_id)
    except DagsterUnavailableError as error:
        run, unavailable = None, error
    if organization_id is None:
        organization_id = _owner(runtime, principal, run_id) if run is None else run.organization_id
    if organization_id is None:
        raise unavailable or not_found()
    if not principal.sees(organization_id):
        raise gate.refused(request, "another organization", HTTPStatus.NOT_FOUND, principal)
    with runtime.database.organization(organization_id) as connection:
        stored = sync_runs.sync(connection, run_id)
    if run is None and stored is None:
        raise unavailable or not_found()
    return _sync(runtime, organization_id, stored, run)


def _owner(runtime: Runtime, principal: Principal, run_id: str) -> str | None:
    """Whose the run is that Dagster does not tell of, as far as it is open to whoever asks."""
    with runtime.database.operator() as connection:
        found = [each.id for each in organizations.organizations(connection) if principal.sees(each.id)]
    for organization_id in found:
        with runtime.database.organization(organization_id) as connection:
            if sync_runs.sync(connection, run_id) is not None:
                return organization_id
    return None


def _sync(runtime: Runtime, organization_id: str, stored: StoredSync | None, run: DagsterRun | None) -> Sync:
    """What Dagster tells of the run and what it has noted itself, put together. One of them is not None."""
    status = _status(stored, run)
    values: dict[str, Any] = {} if stored is None else asdict(stored)
    started_at = values.get("started_at") or (None if run is None else run.started_at)
    finished_at = values.get("finished_at") or (None if run is None else run.ended_at)
    full = values.get("is_full") if values.get("is_full") is not None else (None if run is None else run.is_full)
    error = values.get("error") or (ENDED_BY_ITSELF if status is SyncStatus.FAILED else None)
    progress = _progress(stored) if stored is not None and status is SyncStatus.RUNNING else None
    run_id = stored.run_id if stored is not None else run.run_id if run is not None else ""
    return Sync(
        id=UUID(run_id),
        organization_id=organization_id,
        status=status,
        full=full,
        started_at=started_at,
        finished_at=finished_at if status.has_ended else None,
        requests=progress.requests if progress is not None else values.get("requests", 0),
        seconds_waited=values.get("seconds_waited", 0.0),
        progress=progress,
        tables=[] if stored is None else _tables(stored),
        error=error if status in {SyncStatus.FAILED, SyncStatus.RUNNING} else None,
        url=f"{runtime.settings.ui_url}/runs/{run_id}",
    )


def _status(stored: StoredSync | None, run: DagsterRun | None) -> SyncStatus:
    if run is not None:
        return run.status
    return SyncStatus.RUNNING if stored is None else SyncStatus(stored.status)


def _progress(stored: StoredSync) -> SyncProgress | None:
    noted = stored.progress
    if noted is None:
        return None
    at = datetime.fromisoformat(noted["at"])
    # The first page was what the time is counted from.
    read, left = noted["pages_read"] - 1, noted["pages"] - noted["pages_read"]
    seconds = (at - datetime.fromisoformat(noted["begun_at"])).total_seconds()
    return SyncProgress(
        resource=noted["resource"],
        records_read=noted["records_read"],
        records=noted["records"],
        requests=stored.requests + noted["requests"],
        seconds_left=round(max(left, 0) * seconds / read, 1) if read > 0 else None,
        at=at,
    )


def _tables(stored: StoredSync) -> list[SyncedTable]:
    """In the order in which they were begun."""
    begun = sorted(stored.assets.items(), key=lambda asset: str(asset[1].get("started_at")))
    return [_table(name, noted) for name, noted in begun]


def _table(name: str, noted: dict[str, Any]) -> SyncedTable:
    return SyncedTable(
        name=name,
        status=noted["status"],
        started_at=noted.get("started_at"),
        finished_at=noted.get("finished_at"),
        counts={key: value for key, value in noted.items() if isinstance(value, int)},
        error=noted.get("error"),
    )
