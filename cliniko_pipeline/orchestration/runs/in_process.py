"""Runs of `cliniko_sync` in this process, for the command line.

If the process of a run was killed, the run is lost. The module marks lost runs as failed. Until then, Dagster starts no
further run of the same organization.
"""

from dataclasses import dataclass
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa

from cliniko_pipeline.orchestration.runs.failures import reason_of
from cliniko_pipeline.orchestration.runs.in_flight import WITH_PROCESS
from cliniko_pipeline.orchestration.runs.liveness import delete_ended_heartbeats, find_lost_runs, heartbeats_of_run
from cliniko_pipeline.postgres.operator_tables import scheduling, sync_runs
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import JOB, PARTITION_TAG, TERMINAL_TAG, SyncOptions, run_config

ABANDONED = "The run's process was killed: sync the organization again."


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `error` is one line, or None if the run succeeded."""

    run_id: str
    error: str | None


def run_sync(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    runtime: Runtime,
    organization_id: str,
    options: SyncOptions,
) -> RunResult:
    """Run `cliniko_sync` for one organization. Return failures and interruptions as results."""
    end_abandoned_runs(instance, runtime, organization_id)
    with runtime.database.operator() as connection:
        # Store that this sync is requested. Otherwise the schedule would request it again.
        scheduling.note_requested(connection, {organization_id: options.full}, runtime.now())
    run_id = str(uuid4())
    with heartbeats_of_run(runtime, run_id):
        result = definitions.resolve_job_def(JOB).execute_in_process(
            instance=instance,
            partition_key=organization_id,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **run_config(options)},
            raise_on_error=False,
            run_id=run_id,
            tags={TERMINAL_TAG: "true"},
        )
    return RunResult(result.run_id, None if result.success else _first_error(result))


def end_abandoned_runs(instance: dg.DagsterInstance, runtime: Runtime, organization_id: str) -> None:
    """Mark the organization's lost runs as failed, in Dagster and in `cliniko.sync_runs`.

    A process killed on this machine is noticed at once, and one on another machine within two minutes.
    """
    tags = {PARTITION_TAG: organization_id}
    for run in find_lost_runs(runtime, instance.get_runs(dg.RunsFilter(tags=tags, statuses=WITH_PROCESS))):
        instance.report_run_failed(run, ABANDONED)
    delete_ended_heartbeats(instance, runtime)
    with runtime.database.organization(organization_id) as connection:
        rows = connection.execute(
            sa.text("select run_id, planned, assets from cliniko.sync_runs where status = 'running'")
        )
        for row in rows.all():
            run = instance.get_run_by_id(row.run_id)
            if run is None or run.is_finished:
                unfinished = (name for name in row.planned if row.assets.get(name, {}).get("status") != "succeeded")
                sync_runs.note_finished(
                    connection,
                    run_id=row.run_id,
                    asset=next(unfinished, row.planned[-1]),
                    counts={},
                    requests=0,
                    seconds_waited=0.0,
                    error=ABANDONED,
                )


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            return reason_of(event)
    return f"The run {result.run_id} failed before its first step: see the Dagster UI."
