"""The sensors of partitions, runs, freshness, alerts and webhooks."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.alerts.delivery import note_freshness, plan_messages, send_messages
from cliniko_pipeline.orchestration.assets.active_patients import active_patients
from cliniko_pipeline.orchestration.checks.active_patients import FRESHNESS
from cliniko_pipeline.orchestration.instance.start_rehearsal import rehearse_at_start
from cliniko_pipeline.orchestration.jobs import cliniko_counts, cliniko_sync
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.plans.partition_changes import plan_partitions
from cliniko_pipeline.orchestration.plans.webhooks import AnnouncedSync, announced_syncs
from cliniko_pipeline.orchestration.runs.failures import is_failed_check, is_permanent, reason_of
from cliniko_pipeline.orchestration.runs.in_flight import WITH_PROCESS, has_backfill, organizations_in_flight
from cliniko_pipeline.orchestration.runs.in_process import ABANDONED, end_abandoned_runs
from cliniko_pipeline.orchestration.runs.liveness import delete_ended_heartbeats, find_lost_runs
from cliniko_pipeline.orchestration.runs.probing import probe_for_tick
from cliniko_pipeline.orchestration.runs.requests import sync_request
from cliniko_pipeline.orchestration.webhooks.deliveries import enqueue_deliveries, send_due_deliveries
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling, webhooks
from cliniko_pipeline.postgres.schema.identity import copy_problem
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import PARTITION_TAG, PARTITIONS

RUN_KEY_TAG = "dagster/run_key"


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="organization_partitions",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the partitions equal to the organizations with active Cliniko credentials.",
)
def organization_partitions(
    context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]
) -> dg.SensorResult | dg.SkipReason:
    """Return the changes of the partitions. The first tick also rehearses a sync."""
    rehearse_at_start(runtime, context.log)
    try:
        active = _active_organizations(runtime)
    except ClinikoPipelineError as error:
        return dg.SkipReason(f"The partitions are unchanged, because the organizations cannot be read: {error}")
    existing = set(context.instance.get_dynamic_partitions(PARTITIONS))
    in_flight = existing if has_backfill(context.instance) else organizations_in_flight(context.instance)
    changes = plan_partitions(active, existing, in_flight)
    requests = [
        *([ORGANIZATIONS.build_add_request(list(changes.added))] if changes.added else []),
        *([ORGANIZATIONS.build_delete_request(list(changes.removed))] if changes.removed else []),
    ]
    if not requests:
        return dg.SkipReason(f"The {len(existing)} partitions equal the active organizations.")
    return dg.SensorResult(dynamic_partitions_requests=requests)


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="lost_runs",
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs whose process was killed, on any machine, as failed.",
)
def lost_runs(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
    """Mark lost runs as failed. The sensor `failed_runs` then stores their failures."""
    runs = context.instance.get_runs(dg.RunsFilter(statuses=WITH_PROCESS))
    lost = find_lost_runs(runtime, runs)
    for organization_id in {run.tags[PARTITION_TAG] for run in lost if PARTITION_TAG in run.tags}:
        end_abandoned_runs(context.instance, runtime, organization_id)
    delete_ended_heartbeats(context.instance, runtime)
    return dg.SkipReason(f"Of {len(runs)} unfinished runs, {len(lost)} were lost and are now failed.")


@dg.run_failure_sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="failed_runs",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Completes the rows of killed runs in cliniko.sync_runs, and schedules a retry after a transient failure, with"
        " increasing delays."
    ),
)
def failed_runs(context: dg.RunFailureSensorContext, runtime: dg.ResourceParam[Runtime]) -> None:
    """Store the run's failure, and schedule a retry if the failure is transient."""
    run = context.dagster_run
    organization_id = run.tags.get(PARTITION_TAG)
    if organization_id is None:
        return
    end_abandoned_runs(context.instance, runtime, organization_id)
    events = context.get_step_failure_events()
    # No retry for these: the schedule repeats count comparisons, and a failed check has an alert of its own.
    if run.job_name == cliniko_counts.name or (events and all(map(is_failed_check, events))):
        return
    record = context.instance.get_run_record_by_id(run.run_id)
    with runtime.database.operator() as connection:
        scheduling.note_failure(
            connection,
            organization_id,
            started_at=runtime.now() if record is None else record.create_timestamp.astimezone(UTC),
            reason=next(map(reason_of, events), ABANDONED),
            run_id=run.run_id,
            is_permanent=any(map(is_permanent, events)),
        )


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="stale_organizations",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Evaluates the freshness check of active_patients between runs.",
)
def stale_organizations(
    context: dg.SensorEvaluationContext,  # noqa: ARG001 (Dagster passes it by position)
    runtime: dg.ResourceParam[Runtime],
) -> dg.SensorResult | dg.SkipReason:
    """Return the results of the freshness check that differ from the stored results."""
    changed = note_freshness(runtime, runtime.now())
    if not changed:
        return dg.SkipReason("The freshness of no organization has changed.")
    return dg.SensorResult(
        asset_events=[
            dg.AssetCheckEvaluation(
                asset_key=active_patients.key,
                check_name=FRESHNESS,
                passed=result.holds,
                severity=dg.AssetCheckSeverity.ERROR,
                description=result.remark,
                partition=result.organization_id,
            )
            for result in changed
        ]
    )


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="alerts",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Sends an alert to CLINIKO_ALERT_URLS when a sync fails repeatedly, a sync is paused or a check fails. Sends"
        " another message when the problem is solved."
    ),
)
def alerts(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
    """Queue messages about new, repeated and solved problems, and send the due messages."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    planned = plan_messages(runtime)
    sent = send_messages(runtime)
    for label in sent.failing:
        context.log.warning("%s of CLINIKO_ALERT_URLS did not accept a message, which will be sent again.", label)
    return dg.SkipReason(f"{planned} new messages; {sent.taken} sent, {sent.waiting} waiting.")


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="webhook_syncs",
    job=cliniko_sync,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Syncs the organizations with webhook events, in one run per organization. Events received during a run are"
        " synced by the next one. Starts no run for an organization for which a probe finds nothing to do."
    ),
)
def webhook_syncs(
    context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]
) -> list[dg.RunRequest] | dg.SkipReason:
    """Return the runs that pending events request.

    An event stays pending until a sync succeeds or a probe finds nothing to do. Only syncs and probes that began to
    read after the event count.
    """
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    with runtime.database.operator() as connection:
        pending = webhooks.pending_events(connection)
    if not pending:
        return dg.SkipReason("No webhook events are pending.")
    # A new organization may not have a partition yet, and a run without a partition would fail.
    missing = pending.keys() - set(context.instance.get_dynamic_partitions(PARTITIONS))
    in_flight = organizations_in_flight(context.instance) | missing
    now = runtime.now()
    with runtime.database.operator() as connection:
        planned = announced_syncs(pending, scheduling.schedulings(connection), in_flight, now)
    known = _launched_run_keys(context.instance, planned)
    new = [sync for sync in planned if sync.run_key not in known]
    if not new:
        return dg.SkipReason(f"None of the {len(pending)} organizations with webhook events can be synced now.")
    probed = probe_for_tick(runtime, [sync.organization_id for sync in new], now)
    requested = [sync for sync in new if sync.organization_id in probed.needing_run]
    with runtime.database.operator() as connection:
        scheduling.note_requested(connection, {sync.organization_id: False for sync in requested}, now)
    if not requested:
        return dg.SkipReason(f"No organization with webhook events needs a run. {probed}")
    return [sync_request(sync.organization_id, sync.run_key, is_first=sync.is_first) for sync in requested]


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="webhook_deliveries",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Posts the result of each complete sync to the organization's webhook target, if it has one.",
)
def webhook_deliveries(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
    """Enqueue deliveries of ended syncs, and send due deliveries."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    added = enqueue_deliveries(runtime, context.instance)
    sent = send_due_deliveries(runtime)
    if sent.given_up:
        context.log.warning("%d deliveries were given up: see `cliniko-pipeline webhooks out show`.", sent.given_up)
    return dg.SkipReason(f"{added} deliveries enqueued; {sent.taken} taken, {sent.delayed} to retry.")


def _launched_run_keys(instance: dg.DagsterInstance, planned: Sequence[AnnouncedSync]) -> set[str]:
    """Return those planned run keys with which Dagster has launched a run already.

    Dagster launches no second run with the same key. Storing such a sync as requested would delay scheduled syncs.
    """
    keys = [sync.run_key for sync in planned]
    if not keys:
        return set()
    runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: keys}))
    return {run.tags[RUN_KEY_TAG] for run in runs if run.status != dg.DagsterRunStatus.NOT_STARTED}


def _active_organizations(runtime: Runtime) -> AbstractSet[str]:
    with runtime.database.operator() as connection:
        return {found.id for found in organizations.organizations(connection) if found.is_active}
