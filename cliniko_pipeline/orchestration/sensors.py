"""What watches: partitions follow the organizations, runs whose process died are noted as failed, and the operator is
told of what is wrong.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.alerts.delivery import changed_freshness, decide, send_waiting
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
from cliniko_pipeline.orchestration.runs.liveness import forget_ended_runs
from cliniko_pipeline.orchestration.runs.liveness import lost_runs as find_lost_runs
from cliniko_pipeline.orchestration.runs.requests import sync_request
from cliniko_pipeline.orchestration.webhooks.deliveries import forget_old, put_down, send_due
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
    """The changes of the partitions. The first tick rehearses a sync: no other is sooner after the daemon's start."""
    rehearse_at_start(runtime, context.log)
    try:
        source = _active_organizations(runtime)
    except ClinikoPipelineError as error:
        return dg.SkipReason(f"Nothing is changed, since the organizations cannot be read: {error}")
    existing = set(context.instance.get_dynamic_partitions(PARTITIONS))
    in_flight = existing if has_backfill(context.instance) else organizations_in_flight(context.instance)
    changes = plan_partitions(source, existing, in_flight)
    requests = [
        *([ORGANIZATIONS.build_add_request(list(changes.added))] if changes.added else []),
        *([ORGANIZATIONS.build_delete_request(list(changes.removed))] if changes.removed else []),
    ]
    if not requests:
        return dg.SkipReason(f"The {len(existing)} partitions are those of the organizations.")
    return dg.SensorResult(dynamic_partitions_requests=requests)


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="lost_runs",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends the runs whose process was killed, on whatever machine, where nobody else noticed.",
)
def lost_runs(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
    """Requests nothing: what it ends, `failed_runs` hears of."""
    runs = context.instance.get_runs(dg.RunsFilter(statuses=WITH_PROCESS))
    lost = find_lost_runs(runtime, runs)
    for organization_id in {run.tags[PARTITION_TAG] for run in lost if PARTITION_TAG in run.tags}:
        end_abandoned_runs(context.instance, runtime, organization_id)
    forget_ended_runs(context.instance, runtime)
    return dg.SkipReason(f"Of {len(runs)} runs that go on, {len(lost)} had lost their process and were ended.")


@dg.run_failure_sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="failed_runs",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Notes in cliniko.sync_runs what a run could not note itself, since its process died; and lets the schedule try"
        " again, later and later, what failed for a reason that passes."
    ),
)
def failed_runs(context: dg.RunFailureSensorContext, runtime: dg.ResourceParam[Runtime]) -> None:
    """Ends what the run left unfinished, and notes when to try again."""
    run = context.dagster_run
    organization_id = run.tags.get(PARTITION_TAG)
    if organization_id is None:
        return
    end_abandoned_runs(context.instance, runtime, organization_id)
    events = context.get_step_failure_events()
    # A check that does not hold is told as such, and what only compares is repeated with its next turn.
    if run.job_name == cliniko_counts.name or (events and all(map(is_failed_check, events))):
        return
    record = context.instance.get_run_record_by_id(run.run_id)
    with runtime.database.operator() as connection:
        scheduling.note_failure(
            connection,
            organization_id,
            begun_at=runtime.now() if record is None else record.create_timestamp.astimezone(UTC),
            reason=next(map(reason_of, events), ABANDONED),
            run_id=run.run_id,
            is_permanent=any(map(is_permanent, events)),
        )


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="stale_organizations",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Says of active_patients where it has become older than promised: no run is there to say it.",
)
def stale_organizations(
    context: dg.SensorEvaluationContext,  # noqa: ARG001 (Dagster passes it by position)
    runtime: dg.ResourceParam[Runtime],
) -> dg.SensorResult | dg.SkipReason:
    """The results of the check, of the organizations for which it is another than before."""
    changed = changed_freshness(runtime, runtime.now())
    if not changed:
        return dg.SkipReason("Nothing has become older than promised, or fresh again.")
    return dg.SensorResult(
        asset_events=[
            dg.AssetCheckEvaluation(
                asset_key=active_patients.key,
                check_name=FRESHNESS,
                passed=each.holds,
                severity=dg.AssetCheckSeverity.ERROR,
                description=each.remark,
                partition=each.organization_id,
            )
            for each in changed
        ]
    )


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="alerts",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Tells the operator (CLINIKO_ALERT_URLS) of syncs that fail or pause, of checks that do not hold, and when that"
        " is over: each once."
    ),
)
def alerts(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
    """Requests nothing: what it does is to tell."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    decided = decide(runtime)
    sent = send_waiting(runtime)
    for label in sent.failing:
        context.log.warning("A notice was not taken by %s of CLINIKO_ALERT_URLS; it is tried again later.", label)
    return dg.SkipReason(f"{decided} things to tell; {sent.taken} notices sent, {sent.waiting} wait.")


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="webhook_syncs",
    job=cliniko_sync,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Syncs the organizations of which a webhook has said that something changed: all that came meanwhile in one"
        " run, after the one that goes on."
    ),
)
def webhook_syncs(
    context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]
) -> list[dg.RunRequest] | dg.SkipReason:
    """The runs of what is not known to have been read; nothing is taken for read since it was requested."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    with runtime.database.operator() as connection:
        webhooks.forget_events(connection)
        pending = webhooks.pending_events(connection)
    if not pending:
        return dg.SkipReason("All that webhooks have said is synced.")
    # One that was just added has no partition for a moment, and its run would fail.
    missing = pending.keys() - set(context.instance.get_dynamic_partitions(PARTITIONS))
    in_flight = organizations_in_flight(context.instance) | missing
    now = runtime.now()
    with runtime.database.operator() as connection:
        planned = announced_syncs(pending, scheduling.schedulings(connection), in_flight, now)
        known = _requested_before(context.instance, planned)
        requested = [each for each in planned if each.run_key not in known]
        scheduling.note_requested(connection, {each.organization_id: False for each in requested}, now)
    if not requested:
        return dg.SkipReason(f"Of {len(pending)} organizations with webhooks, none can be synced now.")
    return [sync_request(sync.organization_id, sync.run_key) for sync in requested]


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="webhook_deliveries",
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells those who want to know (cliniko-pipeline webhooks out) of each sync that has ended, once.",
)
def webhook_deliveries(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
    """Requests nothing: what it does is to tell."""
    if (problem := copy_problem(runtime.database)) is not None:
        return dg.SkipReason(problem)
    added = put_down(runtime, context.instance)
    told = send_due(runtime)
    forget_old(runtime)
    if told.given_up:
        context.log.warning("%d deliveries were given up; `cliniko-pipeline webhooks out show` tells.", told.given_up)
    return dg.SkipReason(f"{added} syncs to tell of; {told.taken} told, {told.delayed} to be tried again.")


def _requested_before(instance: dg.DagsterInstance, planned: Sequence[AnnouncedSync]) -> set[str]:
    """The keys of runs that Dagster has, and would not make again. To note these as requested would keep the schedule
    from its turns.
    """
    keys = [each.run_key for each in planned]
    if not keys:
        return set()
    runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: keys}))
    return {run.tags[RUN_KEY_TAG] for run in runs if run.status != dg.DagsterRunStatus.NOT_STARTED}


def _active_organizations(runtime: Runtime) -> AbstractSet[str]:
    with runtime.database.operator() as connection:
        return {each.id for each in organizations.organizations(connection) if each.is_active}
