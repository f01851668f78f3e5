"""The schedules of syncs, of count comparisons and of prunes."""

from datetime import UTC, timedelta

import dagster as dg

from cliniko_pipeline.orchestration.checks.counts import COUNTS_AGREE
from cliniko_pipeline.orchestration.jobs import cliniko_counts, cliniko_prune, cliniko_sync
from cliniko_pipeline.orchestration.plans.due_syncs import due_counts, due_syncs
from cliniko_pipeline.orchestration.runs.in_flight import organizations_in_flight
from cliniko_pipeline.orchestration.runs.probing import compare_counts_for_tick, probe_for_tick
from cliniko_pipeline.orchestration.runs.requests import sync_request
from cliniko_pipeline.orchestration.schedule_settings import default_schedule
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.postgres.operator_tables.check_results import failed_checks
from cliniko_pipeline.postgres.schema.identity import copy_problem
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import PARTITION_TAG


@dg.schedule(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="cliniko_syncs",
    job=cliniko_sync,
    # Organizations are synced at different minutes of the hour, so there is a tick every minute.
    cron_schedule="* * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Syncs every organization hourly, and in full at night. Each organization has its own minute. Settings and"
        " `cliniko-pipeline organizations schedule` change the times. Skips organizations that are disabled, paused or"
        " already in a run. Starts no run for an organization for which a probe finds nothing to do."
    ),
)
def cliniko_syncs(
    context: dg.ScheduleEvaluationContext, runtime: dg.ResourceParam[Runtime]
) -> list[dg.RunRequest] | dg.SkipReason:
    """Return the due syncs."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    now = runtime.to_database_time(context.scheduled_execution_time.astimezone(UTC))
    in_flight = organizations_in_flight(context.instance)
    with runtime.database.operator() as connection:
        found = scheduling.schedulings(connection)
    due = due_syncs(found, in_flight, default_schedule(runtime.settings), now)
    if not due:
        return dg.SkipReason(f"None of {len(found)} organizations is due.")
    probed = probe_for_tick(runtime, [sync.organization_id for sync in due if not sync.is_full], now)
    needed = [sync for sync in due if sync.is_full or sync.organization_id in probed.needing_run]
    with runtime.database.operator() as connection:
        scheduling.note_requested(connection, {sync.organization_id: sync.is_full for sync in needed}, now)
    context.log.info("%s", probed)
    if not needed:
        return dg.SkipReason(f"None of {len(due)} due organizations needs a run. {probed}")
    return [
        # Because of this key, Dagster launches the run only once, even if it evaluates the tick twice.
        sync_request(
            sync.organization_id,
            f"{sync.organization_id} {now.isoformat()}",
            is_full=sync.is_full,
            is_first=sync.is_first,
        )
        for sync in needed
    ]


@dg.schedule(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="cliniko_count_comparisons",
    job=cliniko_counts,
    cron_schedule="* * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Compares the record counts of every organization with Cliniko's once a day (a setting), each at its own"
        " minute. Skips the same organizations as `cliniko_syncs`. Starts a run only where the numbers differ, or where"
        " the last comparison failed."
    ),
)
def cliniko_count_comparisons(
    context: dg.ScheduleEvaluationContext, runtime: dg.ResourceParam[Runtime]
) -> list[dg.RunRequest] | dg.SkipReason:
    """Return the due comparisons."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    now = runtime.to_database_time(context.scheduled_execution_time.astimezone(UTC))
    hours = runtime.settings.compare_counts_every_hours
    in_flight = organizations_in_flight(context.instance)
    with runtime.database.operator() as connection:
        found = scheduling.schedulings(connection)
        failed = {check.organization_id for check in failed_checks(connection) if check.name == COUNTS_AGREE}
    due = due_counts(found, in_flight, timedelta(hours=hours) if hours else None, now)
    if not due:
        return dg.SkipReason(f"None of {len(found)} organizations is due.")
    probed = compare_counts_for_tick(runtime, due)
    # A run records that the numbers differ, or that they agree again.
    needed = [id_ for id_ in due if id_ in probed.needing_run | probed.failed | (probed.unchanged & failed)]
    with runtime.database.operator() as connection:
        scheduling.note_counts_requested(connection, [id_ for id_ in due if id_ not in probed.postponed], now)
    if not needed:
        return dg.SkipReason(f"None of {len(due)} due organizations needs a run. {probed}")
    return [dg.RunRequest(run_key=f"{id_} {now.isoformat()}", tags={PARTITION_TAG: id_}) for id_ in needed]


@dg.schedule(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="cliniko_prunes",
    job=cliniko_prune,
    # After the nightly full syncs of clinics without a time zone.
    cron_schedule="30 6 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Deletes old runs, events and history once a day, in one run for all organizations. Settings change how long"
        " they are kept."
    ),
)
def cliniko_prunes(
    context: dg.ScheduleEvaluationContext, runtime: dg.ResourceParam[Runtime]
) -> dg.RunRequest | dg.SkipReason:
    """Return one run, unless the database is a copy, which may be kept as it was."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    return dg.RunRequest(run_key=context.scheduled_execution_time.astimezone(UTC).isoformat())
