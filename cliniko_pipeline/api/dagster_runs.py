"""Dagster's runs of the main job, as its webserver tells of them over GraphQL: launched, looked up and ended.

Its own client would import Dagster, which takes seconds and 100 MB that a service for reading need not have.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast

import anyio
import httpx

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
MOST_WAITING = 10
"""So many requests wait for an answer at a time, each in a thread, some with a connection to the database: where none
comes, enough of both are left for all that needs no Dagster.
"""

MOST_GOING_ON = 50

_LOG = logging.getLogger(__name__)


class DagsterUnavailableError(TransientError):
    """Dagster's webserver cannot be asked."""


class RunNotEndedError(Exception):
    """Dagster cannot end the run."""


class SyncStatus(StrEnum):
    """Where a sync stands."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is still to come."""
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
    """A run of the main job. Times are UTC; None where it has not come so far.

    `organization_id` is None where it was launched without a partition.
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
    """Asks the webserver at the address. Thread-safe. Every method raises DagsterUnavailableError.

    Attributes:
        turns: whoever is about to ask takes one, and waits for it without a thread.
    """

    def __init__(self, url: str) -> None:
        self.turns = anyio.CapacityLimiter(MOST_WAITING)
        # What is on the way to a webserver of one's own is not sent through a proxy for the world outside.
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def going_on(self, organization_id: str) -> DagsterRun | None:
        """The organization's run that has not ended, the first of several; None: there is none."""
        found = self._find(
            {"tags": [_tag(PARTITION_TAG, organization_id)], "statuses": UNFINISHED_STATUSES}, MOST_GOING_ON
        )
        return min(found, key=lambda run: run.created_at, default=None)

    def requested_before(self, organization_id: str, idempotency: str) -> DagsterRun | None:
        """The run that was launched for the same request."""
        tags = [_tag(PARTITION_TAG, organization_id), _tag(IDEMPOTENCY_TAG, idempotency)]
        return next(iter(self._find({"tags": tags}, 1)), None)

    def latest(self, organization_id: str, limit: int) -> list[DagsterRun]:
        """The organization's runs, the latest first."""
        return self._find({"tags": [_tag(PARTITION_TAG, organization_id)]}, limit)

    def run(self, run_id: str) -> DagsterRun | None:
        """The sync with that id; None: there is none."""
        found = self._ask(_GET, {"id": run_id})["runOrError"]
        return _run(found) if found["__typename"] == "Run" and _is_sync(found) else None

    def launch(self, organization_id: str, options: SyncOptions, idempotency: str | None) -> str:
        """Launches a run for the organization; returns its id."""
        repository = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY}
        # A run of a partition that Dagster does not know fails in its middle.
        added = self._ask(_ADD_PARTITION, {"repository": repository, "partitions": PARTITIONS, "key": organization_id})[
            "addDynamicPartition"
        ]["__typename"]
        if added not in {"AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError"}:
            raise _refused(added)
        tags = [_tag(key, value) for key, value in run_tags(organization_id, options).items()]
        tags += [] if idempotency is None else [_tag(IDEMPOTENCY_TAG, idempotency)]
        launched = self._ask(
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
            raise _refused(launched["__typename"])
        return launched["run"]["runId"]

    def end(self, run_id: str) -> None:
        """Has the run ended: at once where it waits, after what it is doing where it goes on. Raises RunNotEndedError
        where Dagster cannot.
        """
        answer = self._ask(_TERMINATE, {"id": run_id})["terminateRun"]["__typename"]
        if answer != "TerminateRunSuccess":
            raise RunNotEndedError

    def is_reachable(self) -> bool:
        """Whether the webserver answers."""
        try:
            self._ask("query { version }", {})
        except DagsterUnavailableError:
            return False
        return True

    def _find(self, conditions: Mapping[str, object], limit: int) -> list[DagsterRun]:
        found = self._ask(_FIND, {"filter": conditions, "limit": limit})["runsOrError"]
        if found["__typename"] != "Runs":
            raise _refused(found["__typename"])
        return [_run(each) for each in cast("Sequence[dict[str, Any]]", found["results"]) if _is_sync(each)]

    def _ask(self, query: str, variables: Mapping[str, object]) -> dict[str, Any]:
        try:
            response = self._client.post("/graphql", json={"query": query, "variables": variables})
            response.raise_for_status()
            data: object = response.json().get("data")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
            # Its text holds the address, which is the operator's business.
            _LOG.warning("Dagster's webserver could not be asked: %s", type(error).__name__)
            data = None
        if not isinstance(data, dict):
            raise DagsterUnavailableError(
                "Dagster cannot be reached at present: try again in a moment; the operator checks that its webserver"
                " runs and that API_DAGSTER_URL is right."
            )
        return cast("dict[str, Any]", data)


def _is_sync(found: Mapping[str, Any]) -> bool:
    """Whether the run is one of everything: of the main job, or, as backfills are, of its assets."""
    selection = found["assetSelection"]
    if selection is None:
        return found["jobName"] == JOB
    return {"/".join(each["path"]) for each in selection} >= SYNC_ASSETS


def _tag(key: str, value: str) -> dict[str, str]:
    return {"key": key, "value": value}


def _refused(kind: str) -> DagsterUnavailableError:
    _LOG.warning("Dagster refused: %s", kind)
    return DagsterUnavailableError(
        f"Dagster refuses ({kind}): try again in a moment; the operator checks that its code location has loaded."
    )


def _run(found: Mapping[str, Any]) -> DagsterRun:
    tags = {each["key"]: each["value"] for each in found["tags"]}
    return DagsterRun(
        run_id=found["runId"],
        organization_id=tags.get(PARTITION_TAG),
        status=_STATUSES[found["status"]],
        is_full=tags[FULL_TAG] == "true" if FULL_TAG in tags else None,
        is_terminal=TERMINAL_TAG in tags,
        created_at=datetime.fromtimestamp(found["creationTime"], UTC),
        started_at=_instant(found["startTime"]),
        ended_at=_instant(found["endTime"]),
    )


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
