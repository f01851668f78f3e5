"""Routes that request, list, follow and cancel syncs."""

import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Self
from uuid import UUID

import anyio
import anyio.to_thread
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from cliniko_pipeline.api.dagster_runs import (
    CancellationRefusedError,
    DagsterRun,
    DagsterRuns,
    SyncStatus,
)
from cliniko_pipeline.api.gate import (
    FollowableOrganization,
    Follower,
    GateDependency,
    SyncableOrganization,
    Syncer,
)
from cliniko_pipeline.api.problems import ProblemError, documented
from cliniko_pipeline.api.syncs import (
    CancellableSync,
    FollowableSync,
    Sync,
    SyncFinderDependency,
    describe_sync,
    needs_dagster,
)
from cliniko_pipeline.errors import ArgumentError, TransientError
from cliniko_pipeline.postgres.engine import advisory_key
from cliniko_pipeline.postgres.operator_tables import scheduling, sync_runs
from cliniko_pipeline.postgres.operator_tables.sync_runs import StoredSync
from cliniko_pipeline.probes import Unchanged, probe_and_note
from cliniko_pipeline.sync_options import SyncOptions

PROBE_SECONDS = 20.0
"""The time for the probe of a request with `if_changed`. After this time, a sync is launched."""
EVENT_INTERVAL_SECONDS = 1.0
"""Shortest time between two events of a followed sync."""

_LATEST = (datetime(9999, 1, 1, tzinfo=UTC), str(UUID(int=0)))
"""The cursor of the first page."""

router = APIRouter(prefix="/v1", tags=["syncs"])


class SyncRequest(BaseModel):
    """Options of the sync."""

    model_config = ConfigDict(extra="forbid")

    full: bool = Field(
        default=False,
        strict=True,
        description="Whether to read everything and mark records deleted in Cliniko, instead of reading only changes.",
    )
    if_changed: bool = Field(
        default=False,
        strict=True,
        description="Whether to launch no sync if a few requests to Cliniko show that it would change nothing.",
    )

    @model_validator(mode="after")
    def _refuse_both(self) -> Self:
        if self.full and self.if_changed:
            raise ValueError("full and if_changed exclude each other")
        return self


class UnchangedOrganization(BaseModel):
    """No sync was launched, because it would change nothing."""

    organization_id: str = Field(examples=["surf-rehab"])
    verified_at: AwareDatetime = Field(description="The instant for which the stored rows are right.")


class AcceptedSync(BaseModel):
    """The launched sync, or the sync that was already queued or running."""

    id: UUID
    organization_id: str = Field(examples=["surf-rehab"])
    is_new: bool = Field(
        description="Whether this request launched the sync. false if the sync was already queued or running, or was"
        " requested with the same key."
    )
    full: bool | None = Field(
        description="Whether this is a full sync, which may differ from the request. null if unknown."
    )


class SyncsPage(BaseModel):
    """Syncs, the latest first."""

    items: list[Sync]
    next_cursor: str | None = Field(description="Cursor of the next page, or null on the last page.")


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A text of your choice. A repeated request with the same key returns the same sync, even if the"
        " sync has ended.",
    ),
]


@router.post(
    "/organizations/{organization_id}/syncs",
    status_code=HTTPStatus.ACCEPTED,
    response_model=AcceptedSync,
    responses={
        HTTPStatus.OK: {"model": UnchangedOrganization, "description": "Nothing has changed, so no sync was launched."},
        **documented(400, 401, 403, 404, 409, 413, 422, 429, 503),
    },
)
@needs_dagster
def request_sync(
    finder: SyncFinderDependency,
    principal: Syncer,
    organization: SyncableOrganization,
    wanted: SyncRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> AcceptedSync | JSONResponse:
    """Launch a sync of the organization. If a sync is already queued or running, return that sync instead."""
    if not organization.is_active:
        raise ProblemError(HTTPStatus.CONFLICT, "The organization is disabled: ask the operator to enable it.")
    runtime, dagster = finder.runtime, finder.dagster
    options = SyncOptions(full=False if wanted is None else wanted.full)
    idempotency = None
    if idempotency_key is not None:
        # The tag contains a digest instead of the caller's text, because Dagster's UI shows tags.
        parts = "\x1f".join((principal.id, organization.id, idempotency_key))
        idempotency = hashlib.sha256(parts.encode()).hexdigest()[:32]
    # If the database is read-only, Dagster would launch a run that fails.
    runtime.database.require_writable()
    if wanted is not None and wanted.if_changed:
        verdict = probe_and_note(runtime, [organization.id], seconds=PROBE_SECONDS)[organization.id]
        if isinstance(verdict, Unchanged):
            unchanged = UnchangedOrganization(organization_id=organization.id, verified_at=verdict.at)
            return JSONResponse(unchanged.model_dump(mode="json"), HTTPStatus.OK)
    now = runtime.now()
    with runtime.database.operator() as connection:
        # Because of this lock, a concurrent request for the organization finds the run that is launched here.
        connection.execute(sa.text("set local lock_timeout = '20s'"))
        connection.execute(
            sa.text("select pg_advisory_xact_lock(:key)"),
            {"key": advisory_key("cliniko_pipeline.api", organization.id)},
        )
        existing = _existing_run(dagster, organization.id, options, idempotency)
        if existing is not None:
            return AcceptedSync(
                id=UUID(existing.run_id), organization_id=organization.id, is_new=False, full=existing.is_full
            )
        run_id = dagster.launch(organization.id, options, idempotency)
        # Otherwise the schedule might launch another sync immediately.
        scheduling.note_requested(connection, {organization.id: options.full}, now)
    return AcceptedSync(id=UUID(run_id), organization_id=organization.id, is_new=True, full=options.full)


@router.get("/organizations/{organization_id}/syncs", responses=documented(401, 403, 404, 422, 429, 503))
@needs_dagster
def list_syncs(
    finder: SyncFinderDependency,
    organization: FollowableOrganization,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> SyncsPage:
    """List all syncs of the organization, the latest first."""
    runtime = finder.runtime
    before = None if cursor is None else _decode_cursor(cursor)
    with runtime.database.organization(organization.id) as connection:
        stored = sync_runs.syncs(connection, limit + 1, before)
    runs = {run.run_id: run for run in finder.latest_runs(organization.id, limit)}
    stored_ids = {sync.run_id for sync in stored}
    # A queued run has no row yet, and a run that was cancelled while queued never gets a row.
    unstored = [run for run in runs.values() if run.run_id not in stored_ids] if before is None else []
    found: list[tuple[datetime, StoredSync | None, DagsterRun | None]] = [
        *((sync.started_at, sync, runs.get(sync.run_id)) for sync in stored),
        *((run.created_at, None, run) for run in unstored),
    ]
    found.sort(key=lambda entry: entry[0], reverse=True)
    page = found[:limit]
    last = next((sync for _, sync, _ in reversed(page) if sync is not None), None)
    return SyncsPage(
        items=[describe_sync(runtime, organization.id, sync, run) for _, sync, run in page],
        next_cursor=_encode_cursor(last) if len(found) > limit else None,
    )


async def follower_slot(gate: GateDependency, principal: Follower) -> AsyncIterator[None]:
    """Occupy one of the token's slots for followed syncs while the stream is open."""
    with gate.hold_follower_slot(principal):
        yield


@router.get("/syncs/{sync_id}", responses=documented(401, 403, 404, 422, 429, 503))
async def get_sync(sync: FollowableSync) -> Sync:
    """Return the sync with its status, its progress while it runs, and its results."""
    return sync


@router.get(
    "/syncs/{sync_id}/events",
    response_class=EventSourceResponse,
    dependencies=[Depends(follower_slot)],
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def follow_sync(
    request: Request,
    gate: GateDependency,
    finder: SyncFinderDependency,
    principal: Follower,
    sync: FollowableSync,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the sync as server-sent events. `sync` is sent after each change, and `ended` with the final state."""
    sent = None
    while True:
        if sync.status.has_ended:
            yield ServerSentEvent(data=sync, event="ended")
            return
        if sync != sent:
            yield ServerSentEvent(data=sync, event="sync")
            sent = sync
        await anyio.sleep(EVENT_INTERVAL_SECONDS)
        try:
            await run_in_threadpool(gate.require_valid_token, request)
            sync = await anyio.to_thread.run_sync(
                partial(finder.find, principal, str(sync.id), sync.organization_id), limiter=finder.dagster.slots
            )
        except ProblemError:
            return  # the sync is gone, or the token is no longer valid
        except TransientError:
            continue  # the database or Dagster cannot be reached now


@router.delete(
    "/syncs/{sync_id}", status_code=HTTPStatus.ACCEPTED, responses=documented(401, 403, 404, 409, 422, 429, 503)
)
@needs_dagster
def cancel_sync(
    finder: SyncFinderDependency,
    principal: Syncer,
    sync: CancellableSync,
) -> Sync:
    """Cancel the sync. A queued sync ends immediately, and a running sync ends after its current step. The records
    read so far are kept, and the next sync reads the rest. A sync that has already ended is returned unchanged.
    """
    if sync.status.has_ended:
        return sync
    run = finder.dagster.find(str(sync.id))
    if run is not None and run.is_terminal:
        raise ProblemError(HTTPStatus.CONFLICT, "The sync runs in a terminal: press Ctrl-C there to end it.")
    finder.runtime.database.require_writable()
    try:
        finder.dagster.cancel(str(sync.id))
    except CancellationRefusedError:
        current = finder.find(principal, str(sync.id))
        if not current.status.has_ended and current.status is not SyncStatus.CANCELLING:
            raise ProblemError(
                HTTPStatus.CONFLICT, "Dagster cannot cancel this run now: try again in a moment."
            ) from None
        return current
    return finder.find(principal, str(sync.id))


def _existing_run(
    dagster: DagsterRuns, organization_id: str, options: SyncOptions, idempotency: str | None
) -> DagsterRun | None:
    if idempotency is not None:
        requested = dagster.find_requested(organization_id, idempotency)
        if requested is not None and requested.is_full != options.full:
            raise ArgumentError("This Idempotency-Key was sent with another request: choose a new one.")
        if requested is not None:
            return requested
    return dagster.find_unfinished(organization_id)


def _encode_cursor(last: StoredSync | None) -> str:
    """Return the cursor after the last stored sync. None means that the page has no stored sync."""
    started_at, run_id = _LATEST if last is None else (last.started_at, last.run_id)
    return base64.urlsafe_b64encode(f"{started_at.isoformat()} {run_id}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        started_at, _, run_id = text.partition(" ")
        return datetime.fromisoformat(started_at).astimezone(UTC), str(UUID(run_id))
    except (ValueError, OverflowError):
        raise ArgumentError("The cursor is invalid: send `next_cursor` of the previous page.") from None
