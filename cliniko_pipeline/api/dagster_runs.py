"""Client that launches, finds and cancels runs of `cliniko_sync` over Dagster's GraphQL.

The package `dagster_graphql` is not used, because it imports Dagster, which costs seconds and 100 MB of memory.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, cast

import anyio
import httpx
from fastapi import Depends, Request

from cliniko_pipeline.errors import TransientError
from cliniko_pipeline.sync_options import (
    FULL_TAG,
    JOB,
    PARTITION_TAG,
    PARTITIONS,
    SYNC_ASSETS,
    TERMINAL_TAG,
    UNFINISHED_STATUSES,
    SyncOptions,
    run_config,
    run_tags,
)

LOCATION = "cliniko_pipeline"
REPOSITORY = "__repository__"

IDEMPOTENCY_TAG = "cliniko_pipeline/idempotency"

TIMEOUT_SECONDS = 20
MAX_CONCURRENT_REQUESTS = 10
"""Requests that may wait for Dagster at the same time.

Each of them occupies a thread, and some also occupy a database connection. Even if Dagster hangs, enough threads and
connections stay free for requests that do not need Dagster.
"""

MAX_UNFINISHED_RUNS = 50

_LOG = logging.getLogger(__name__)


class DagsterUnavailableError(TransientError):
    """Dagster's webserver cannot be reached, or it refuses the request."""


class CancellationRefusedError(Exception):
    """Dagster cannot cancel the run."""


class SyncStatus(StrEnum):
    """The status of a sync."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self in {SyncStatus.SUCCEEDED, SyncStatus.FAILED, SyncStatus.CANCELLED}


_STATUSES = {
    "NOT_STARTED": SyncStatus.QUEUED,
    "MANAGED": SyncStatus.QUEUED,
    "QUEUED": SyncStatus.QUEUED,
    "STARTING": SyncStatus.QUEUED,
    "STARTED": SyncStatus.RUNNING,
    "CANCELING": SyncStatus.CANCELLING,
    "SUCCESS": SyncStatus.SUCCEEDED,
    "FAILURE": SyncStatus.FAILED,
    "CANCELED": SyncStatus.CANCELLED,
}


@dataclass(frozen=True)
class DagsterRun:
    """A run of `cliniko_sync`, or of all assets of this job. Times are UTC.

    Attributes:
        organization_id: partition of the run; None if the run has no partition.
        is_full: whether the run is a full sync; None if the run's tags do not say.
        is_terminal: whether a command in a terminal executes the run.
        started_at: None if the run has not started.
    """

    run_id: str
    organization_id: str | None
    status: SyncStatus
    is_full: bool | None
    is_terminal: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


_RUN = "runId jobName status creationTime startTime endTime tags { key value } assetSelection { path }"

_FIND = f"""
query ($filter: RunsFilter!, $limit: Int!) {{
  runsOrError(filter: $filter, limit: $limit) {{ __typename ... on Runs {{ results {{ {_RUN} }} }} }}
}}
"""

_GET = f"query ($id: ID!) {{ runOrError(runId: $id) {{ __typename ... on Run {{ {_RUN} }} }} }}"

_ADD_PARTITION = """
mutation ($repository: RepositorySelector!, $partitions: String!, $key: String!) {
  addDynamicPartition(repositorySelector: $repository, partitionsDefName: $partitions, partitionKey: $key) {
    __typename
  }
}
"""

_LAUNCH = """
mutation ($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""

_TERMINATE = "mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"


class DagsterRuns:
    """Client of Dagster's webserver. Thread-safe.

    All methods that find or change runs raise DagsterUnavailableError.

    Attributes:
        slots: limit of concurrent requests. Callers wait for a slot before they occupy a thread.
    """

    def __init__(self, url: str) -> None:
        self.slots = anyio.CapacityLimiter(MAX_CONCURRENT_REQUESTS)
        # `trust_env=False` ignores HTTP_PROXY, because the webserver is in the operator's network.
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def find_unfinished(self, organization_id: str) -> DagsterRun | None:
        """Return the organization's oldest run that has not ended."""
        conditions = {"tags": [_tag(PARTITION_TAG, organization_id)], "statuses": UNFINISHED_STATUSES}
        runs = self._find(conditions, MAX_UNFINISHED_RUNS)
        return min(runs, key=lambda run: run.created_at, default=None)

    def find_requested(self, organization_id: str, idempotency: str) -> DagsterRun | None:
        """Return the run that was launched with this idempotency tag."""
        tags = [_tag(PARTITION_TAG, organization_id), _tag(IDEMPOTENCY_TAG, idempotency)]
        return next(iter(self._find({"tags": tags}, 1)), None)

    def list_latest(self, organization_id: str, limit: int) -> list[DagsterRun]:
        """Return the organization's runs, the latest first."""
        return self._find({"tags": [_tag(PARTITION_TAG, organization_id)]}, limit)

    def find(self, run_id: str) -> DagsterRun | None:
        """Return the run, or None if it does not exist or is not a sync."""
        found = self._query(_GET, {"id": run_id})["runOrError"]
        return _parse_run(found) if found["__typename"] == "Run" and _is_sync(found) else None

    def launch(self, organization_id: str, options: SyncOptions, idempotency: str | None) -> str:
        """Launch a run for the organization and return its id. Add the partition if Dagster does not know it."""
        repository = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}
        partition = {"repository": repository, "partitions": PARTITIONS, "key": organization_id}
        added = self._query(_ADD_PARTITION, partition)["addDynamicPartition"]["__typename"]
        if added not in {"AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError"}:
            raise _refusal(added)
        tags = [_tag(key, value) for key, value in run_tags(organization_id, options).items()]
        tags += [] if idempotency is None else [_tag(IDEMPOTENCY_TAG, idempotency)]
        launched = self._query(
            _LAUNCH,
            {
                "parameters": {
                    "selector": repository | {"jobName": JOB},
                    "runConfigData": run_config(options),
                    "mode": "default",
                    "executionMetadata": {"tags": tags},
                }
            },
        )["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise _refusal(launched["__typename"])
        return launched["run"]["runId"]

    def cancel(self, run_id: str) -> None:
        """Cancel the run. Raise CancellationRefusedError if Dagster cannot cancel it.

        A queued run ends immediately. A started run ends after its current step.
        """
        answer = self._query(_TERMINATE, {"id": run_id})["terminateRun"]["__typename"]
        if answer != "TerminateRunSuccess":
            raise CancellationRefusedError

    def is_reachable(self) -> bool:
        """Return whether the webserver responds."""
        try:
            self._query("query { version }", {})
        except DagsterUnavailableError:
            return False
        return True

    def _find(self, conditions: Mapping[str, object], limit: int) -> list[DagsterRun]:
        found = self._query(_FIND, {"filter": conditions, "limit": limit})["runsOrError"]
        if found["__typename"] != "Runs":
            raise _refusal(found["__typename"])
        return [_parse_run(run) for run in cast("Sequence[dict[str, Any]]", found["results"]) if _is_sync(run)]

    def _query(self, query: str, variables: Mapping[str, object]) -> dict[str, Any]:
        try:
            response = self._client.post("/graphql", json={"query": query, "variables": variables})
            response.raise_for_status()
            data: object = response.json().get("data")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
            # Only the error's type is logged, because its text contains the webserver's address.
            _LOG.warning("Dagster's webserver cannot be reached: %s", type(error).__name__)
            data = None
        if not isinstance(data, dict):
            raise DagsterUnavailableError(
                "Dagster cannot be reached: try again in a moment. Operators: check that Dagster's webserver runs and"
                " that API_DAGSTER_URL is its address."
            )
        return cast("dict[str, Any]", data)


def _is_sync(run: Mapping[str, Any]) -> bool:
    """Return whether this is a run of `cliniko_sync` or, in a backfill, of all assets of this job."""
    selection = run["assetSelection"]
    if selection is None:
        return run["jobName"] == JOB
    return {"/".join(key["path"]) for key in selection} >= SYNC_ASSETS


def _tag(key: str, value: str) -> dict[str, str]:
    return {"key": key, "value": value}


def _refusal(kind: str) -> DagsterUnavailableError:
    _LOG.warning("Dagster refused: %s", kind)
    return DagsterUnavailableError(
        f"Dagster refuses ({kind}): try again in a moment. Operators: check that the code location has loaded."
    )


def _parse_run(run: Mapping[str, Any]) -> DagsterRun:
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    return DagsterRun(
        run_id=run["runId"],
        organization_id=tags.get(PARTITION_TAG),
        status=_STATUSES[run["status"]],
        is_full=tags[FULL_TAG] == "true" if FULL_TAG in tags else None,
        is_terminal=TERMINAL_TAG in tags,
        created_at=datetime.fromtimestamp(run["creationTime"], UTC),
        started_at=_instant(run["startTime"]),
        ended_at=_instant(run["endTime"]),
    )


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def dagster_of(request: Request) -> DagsterRuns:
    """Return the application's client of Dagster."""
    return request.app.state.dagster


DagsterDependency = Annotated[DagsterRuns, Depends(dagster_of)]
