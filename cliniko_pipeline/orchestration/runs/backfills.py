"""Backfills, which have one run per organization and one page in the Dagster UI.

The command `dagster-graphql` launches a backfill by the same GraphQL mutation as the UI. The GraphQL schema is public,
but all other ways need private classes of Dagster. The command takes three seconds, because it starts a code server.

The daemon may be killed after it has created a run and before it has submitted that run. A backfill of assets submits
the run later, because it reserves the ids of its runs. A backfill of the job would never submit the run.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from cliniko_pipeline.errors import ArgumentError, ClinikoPipelineError, DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.orchestration.assets import ASSETS
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.runs.in_flight import ENDED_BACKFILLS
from cliniko_pipeline.orchestration.runs.in_process import end_abandoned_runs
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import LONG_QUEUE, PARTITION_TAG, QUEUE_TAG

BACKFILL_TAG = "dagster/backfill"
LAUNCH_SECONDS = 180
DAEMON_TIMEOUT = timedelta(minutes=2)
"""A daemon sends a heartbeat every 30 s. If it sends none for this time, it has stopped."""

EXTRACTING = (patients, appointments)
"""The assets that read from Cliniko, in full or incrementally."""

_FAILED = {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
_WAITING = {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED}

_LAUNCH = """
mutation {
  launchPartitionBackfill(backfillParams: {
    title: "cliniko-pipeline backfill", assetSelection: [%s], partitionNames: %s, runConfigData: %s,
    tags: [{key: %s, value: %s}]
  }) { __typename ... on LaunchBackfillSuccess { backfillId } }
}
"""


@dataclass(frozen=True)
class BackfillProgress:
    """The organizations of a backfill, grouped by the state of their runs.

    `failed` maps each organization to the id of its run, or to None if the backfill ended without creating the run.
    """

    waiting: list[str] = field(default_factory=list[str])
    running: list[str] = field(default_factory=list[str])
    succeeded: list[str] = field(default_factory=list[str])
    failed: dict[str, str | None] = field(default_factory=dict[str, str | None])

    @property
    def has_ended(self) -> bool:
        """Whether all runs have ended."""
        return not self.waiting and not self.running


def asset_names() -> list[str]:
    """Return the names of all assets of a sync, in the order of their computation."""
    return [_name(asset) for asset in ASSETS]


def chosen_assets(names: Collection[str], *, full: bool) -> list[str]:
    """Return these names of assets in the order of computation.

    Raise ArgumentError for an unknown name. With `full`, also raise it if no named asset reads from Cliniko.
    """
    known = asset_names()
    for name in names:
        if name not in known:
            raise ArgumentError(f"There is no asset '{name}'. The assets are {', '.join(known)}.")
    extracting = [_name(asset) for asset in EXTRACTING]
    if full and not set(extracting) & set(names):
        raise ArgumentError(f"Only {' and '.join(extracting)} can be read in full: choose at least one of them.")
    return [name for name in known if name in names]


def launch_backfill(
    instance: dg.DagsterInstance,
    runtime: Runtime,
    organization_ids: Sequence[str],
    assets: Sequence[str],
    *,
    full: bool,
) -> str:
    """Request a run of these assets for each organization; return the backfill's id.

    `instance` must come from `open_instance`, which sets the environment variables that the launch needs. Raise
    DatabaseSetupError if Dagster refuses the backfill.
    """
    extracting = [asset.op.name for asset in EXTRACTING if _name(asset) in assets]
    run_config = {"ops": {name: {"config": {"full": True}} for name in extracting}} if full else {}
    ensure_partitions(instance, list(organization_ids))
    keys = ", ".join(f"{{path: {_literal(name.split('/'))}}}" for name in assets)
    tag = _literal(QUEUE_TAG), _literal(LONG_QUEUE)
    backfill_id = _launched(_LAUNCH % (keys, _literal(organization_ids), _literal(json.dumps(run_config)), *tag))
    if set(assets) == set(asset_names()):
        with runtime.database.operator() as connection:
            # Store that these syncs are requested. Otherwise the schedule would request them again.
            scheduling.note_requested(connection, dict.fromkeys(organization_ids, full), runtime.now())
    return backfill_id


def has_daemon(instance: dg.DagsterInstance, now: datetime) -> bool:
    """Return whether Dagster's daemon, which executes backfills, is running."""
    with _storage_errors_translated():
        heartbeats = instance.get_daemon_heartbeats().values()
    oldest = (now - DAEMON_TIMEOUT).timestamp()
    return any(heartbeat.timestamp > oldest for heartbeat in heartbeats)


def backfill_progress(
    instance: dg.DagsterInstance, backfill_id: str, organization_ids: Sequence[str]
) -> BackfillProgress:
    """Return the backfill's progress. Raise DatabaseUnavailableError."""
    with _storage_errors_translated():
        backfill = instance.get_backfill(backfill_id)
        runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_TAG: backfill_id}))
    # Dagster returns the newest runs first. In reverse, the newest run of an organization replaces older runs.
    latest = {run.tags.get(PARTITION_TAG): run for run in reversed(runs)}
    is_over = backfill is None or backfill.status.value in ENDED_BACKFILLS
    progress = BackfillProgress()
    for organization_id in organization_ids:
        run = latest.get(organization_id)
        if run is None:
            if is_over:
                progress.failed[organization_id] = None
            else:
                progress.waiting.append(organization_id)
        elif run.status in _FAILED:
            progress.failed[organization_id] = run.run_id
        elif run.status == dg.DagsterRunStatus.SUCCESS:
            progress.succeeded.append(organization_id)
        else:
            (progress.waiting if run.status in _WAITING else progress.running).append(organization_id)
    return progress


def reasons(instance: dg.DagsterInstance, runtime: Runtime, failed: dict[str, str | None]) -> dict[str, str]:
    """Return a one-line reason per failed organization. Raise DatabaseUnavailableError."""
    with _storage_errors_translated():
        return {id_: _reason(instance, runtime, id_, run_id) for id_, run_id in failed.items()}


def _reason(instance: dg.DagsterInstance, runtime: Runtime, organization_id: str, run_id: str | None) -> str:
    if run_id is None:
        return "The backfill ended before its run was created: see the Dagster UI."
    # A run that was killed could not store its failure, so store the failure here.
    end_abandoned_runs(instance, runtime, organization_id)
    with runtime.database.organization(organization_id) as connection:
        error = connection.execute(
            sa.text("select error from cliniko.sync_runs where run_id = :run_id"), {"run_id": run_id}
        ).scalar()
    return error or f"The run {run_id} ended before its first step: see the Dagster UI."


def _name(asset: dg.AssetsDefinition) -> str:
    return asset.key.to_user_string()


def _literal(value: object) -> str:
    """Return a text or a list of texts as a GraphQL literal, which is written like JSON."""
    return json.dumps(value, ensure_ascii=False)


def _launched(mutation: str) -> str:
    answer: dict[str, str] | None = None
    with (
        tempfile.TemporaryDirectory() as folder,
        resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "workspace.yaml") as workspace,
    ):
        # The code server logs to standard output, so the response is written to a file. The mutation may be too long
        # for an argument, so it is passed on standard input.
        output = Path(folder) / "answer.json"
        program = [sys.executable, "-W", "ignore", "-c", "from dagster_graphql.cli import main; main()"]
        try:
            subprocess.run(  # noqa: S603 (no shell)
                [*program, "--workspace", str(workspace), "--file", "-", "--output", str(output)],
                input=mutation.encode(),
                capture_output=True,
                timeout=LAUNCH_SECONDS,
                check=False,
            )
            answer = json.loads(output.read_text(encoding="utf-8"))["data"]["launchPartitionBackfill"]
        except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
            answer = None  # The output is not reported, because it may contain secrets.
    if answer is None or "backfillId" not in answer:
        raise DatabaseSetupError(
            f"Dagster refused the backfill ({'no answer' if answer is None else answer['__typename']}):"
            " run `cliniko-pipeline doctor`, or launch the backfill in the Dagster UI."
        )
    return answer["backfillId"]


@contextmanager
def _storage_errors_translated() -> Generator[None, None, None]:
    try:
        yield
    except ClinikoPipelineError:
        raise
    except Exception as error:  # noqa: BLE001 (a configured storage can raise anything)
        # Dagster's own errors can quote the storage URL with its password.
        raise DatabaseUnavailableError(
            f"Dagster's storage cannot be read ({type(error).__name__}): check that the database runs. Once it runs, a"
            " launched backfill continues."
        ) from None
