"""Backfills: a run for each of many organizations, which Dagster's daemon carries out and its UI shows on one page.

What launches one is the mutation that the UI's dialog sends, by way of `dagster-graphql`: its schema is public, where
making and storing a backfill takes several of Dagster's private classes, which change with any release. The price is
three seconds, for a code server of its own. It is a backfill of *assets*, not of the job: that reserves the ids of its
runs, so a daemon killed between making a run and submitting it goes on where it was, while a job's backfill leaves that
run unsubmitted until it is given up.
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
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.jobs import ASSETS
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.runs.in_flight import ENDED_BACKFILLS
from cliniko_pipeline.orchestration.runs.in_process import end_abandoned_runs
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import PARTITION_TAG

BACKFILL_TAG = "dagster/backfill"
LAUNCH_SECONDS = 180
SILENCE_OF_A_DEAD_DAEMON = timedelta(minutes=2)
"""A daemon that lives gives a sign of life every 30 seconds."""

EXTRACTING = (patients, appointments)
"""The assets that read from Cliniko, and so can read from the beginning."""

_FAILED = {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
_WAITING = {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED}

_LAUNCH = """
mutation {
  launchPartitionBackfill(backfillParams: {
    title: "cliniko-pipeline backfill", assetSelection: [%s], partitionNames: %s, runConfigData: %s
  }) { __typename ... on LaunchBackfillSuccess { backfillId } }
}
"""


@dataclass(frozen=True)
class BackfillProgress:
    """How far a backfill has come: its organizations by what became of their runs.

    `failed` has the run's id, None where there was none when the backfill ended.
    """

    waiting: list[str] = field(default_factory=list[str])
    running: list[str] = field(default_factory=list[str])
    succeeded: list[str] = field(default_factory=list[str])
    failed: dict[str, str | None] = field(default_factory=dict[str, str | None])

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is still to come."""
        return not self.waiting and not self.running


def asset_names() -> list[str]:
    """The assets that a backfill can be of, in the order in which they are made."""
    return [_name(asset) for asset in ASSETS]


def chosen_assets(names: Collection[str], *, full: bool) -> list[str]:
    """Those named, in the order in which they are made.

    Raises ArgumentError where there is none of a name, or where `full` is asked of none that reads from Cliniko.
    """
    known = asset_names()
    for name in names:
        if name not in known:
            raise ArgumentError(f"There is no asset '{name}'. The assets are {', '.join(known)}.")
    extracting = [_name(asset) for asset in EXTRACTING]
    if full and not set(extracting) & set(names):
        raise ArgumentError(f"Only {' and '.join(extracting)} can be full: choose at least one of them.")
    return [name for name in known if name in names]


def launch_backfill(
    instance: dg.DagsterInstance,
    runtime: Runtime,
    organization_ids: Sequence[str],
    assets: Sequence[str],
    *,
    full: bool,
) -> str:
    """Requests a run of these assets for each organization; returns the backfill's id.

    `instance` is that of `open_instance`, which tells this process's environment where it is. Raises DatabaseSetupError
    where Dagster refuses.
    """
    extracting = [asset.op.name for asset in EXTRACTING if _name(asset) in assets]
    run_config = {"ops": {name: {"config": {"full": True}} for name in extracting}} if full else {}
    ensure_partitions(instance, list(organization_ids))
    keys = ", ".join(f"{{path: {_literal(name.split('/'))}}}" for name in assets)
    backfill_id = _launched(_LAUNCH % (keys, _literal(organization_ids), _literal(json.dumps(run_config))))
    if set(assets) == set(asset_names()):
        with runtime.database.operator() as connection:
            # The schedule need not do at once what is done now.
            scheduling.note_requested(connection, dict.fromkeys(organization_ids, full), runtime.now())
    return backfill_id


def has_daemon(instance: dg.DagsterInstance, now: datetime) -> bool:
    """Whether there is somebody to carry a backfill out."""
    with _told_as_unavailable():
        heartbeats = instance.get_daemon_heartbeats().values()
    oldest = (now - SILENCE_OF_A_DEAD_DAEMON).timestamp()
    return any(heartbeat.timestamp > oldest for heartbeat in heartbeats)


def backfill_progress(
    instance: dg.DagsterInstance, backfill_id: str, organization_ids: Sequence[str]
) -> BackfillProgress:
    """As things stand. Raises DatabaseUnavailableError."""
    with _told_as_unavailable():
        backfill = instance.get_backfill(backfill_id)
        runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_TAG: backfill_id}))
    # The newest come first, and only they count.
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
    """Why each organization's run failed, in one line. Raises DatabaseUnavailableError."""
    with _told_as_unavailable():
        return {each: _reason(instance, runtime, each, run_id) for each, run_id in failed.items()}


def _reason(instance: dg.DagsterInstance, runtime: Runtime, organization_id: str, run_id: str | None) -> str:
    if run_id is None:
        return "The backfill ended before its run was made; the Dagster UI has the details."
    # One whose process was killed has not said so itself.
    end_abandoned_runs(instance, runtime, organization_id)
    with runtime.database.organization(organization_id) as connection:
        error = connection.execute(
            sa.text("select error from cliniko.sync_runs where run_id = :run_id"), {"run_id": run_id}
        ).scalar()
    return error or f"The run {run_id} was ended before it did anything; the Dagster UI has the details."


def _name(asset: dg.AssetsDefinition) -> str:
    return asset.key.to_user_string()


def _literal(value: object) -> str:
    """Text and lists of it are written in GraphQL as in JSON."""
    return json.dumps(value, ensure_ascii=False)


def _launched(mutation: str) -> str:
    answer: dict[str, str] | None = None
    with (
        tempfile.TemporaryDirectory() as folder,
        resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "workspace.yaml") as workspace,
    ):
        # What the code server logs goes to the standard streams. The mutation comes from one: it may be long.
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
            answer = None  # whatever it printed may hold anything
    if answer is None or "backfillId" not in answer:
        raise DatabaseSetupError(
            f"Dagster did not take the backfill ({'no answer' if answer is None else answer['__typename']}):"
            " `cliniko-pipeline doctor` may say why, or launch it in the UI."
        )
    return answer["backfillId"]


@contextmanager
def _told_as_unavailable() -> Generator[None, None, None]:
    try:
        yield
    except ClinikoPipelineError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a configured storage may raise)
        # Dagster's own errors can quote the storage URL with its password.
        raise DatabaseUnavailableError(
            f"Dagster's storage cannot be read ({type(error).__name__}): check that the database runs. What was"
            " launched goes on when it does."
        ) from None
