"""What watches: partitions follow the organizations, and runs whose process died are noted as failed."""

from collections.abc import Set as AbstractSet

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.failures import is_permanent
from cliniko_pipeline.orchestration.in_flight import PARTITION_TAG, has_backfill, organizations_in_flight
from cliniko_pipeline.orchestration.partition_plans import plan_partitions
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.run_marks import is_abandoned
from cliniko_pipeline.orchestration.runs import GOES_ON, end_abandoned_runs
from cliniko_pipeline.postgres import organizations, scheduling
from cliniko_pipeline.runtime import Runtime

NAME = "organizations"


@dg.sensor(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    name="organization_partitions",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the partitions equal to the organizations with active Cliniko credentials.",
)
def organization_partitions(
    context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]
) -> dg.SensorResult | dg.SkipReason:
    """The changes of the partitions."""
    try:
        source = _active_organizations(runtime)
    except ClinikoPipelineError as error:
        return dg.SkipReason(f"Nothing is changed, since the organizations cannot be read: {error}")
    existing = set(context.instance.get_dynamic_partitions(NAME))
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
    description="Ends the runs of this machine whose process was killed, where nobody else noticed.",
)
def lost_runs(context: dg.SensorEvaluationContext, runtime: dg.ResourceParam[Runtime]) -> dg.SkipReason:
    """Requests nothing: what it ends, `failed_runs` hears of."""
    runs = context.instance.get_runs(dg.RunsFilter(statuses=list(GOES_ON)))
    lost = [run for run in runs if PARTITION_TAG in run.tags and is_abandoned(runtime, run.run_id)]
    for run in lost:
        end_abandoned_runs(context.instance, runtime, run.tags[PARTITION_TAG])
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
    organization_id = context.dagster_run.tags.get(PARTITION_TAG)
    if organization_id is None:
        return
    end_abandoned_runs(context.instance, runtime, organization_id)
    if not any(is_permanent(event) for event in context.get_step_failure_events()):
        with runtime.database.operator() as connection:
            scheduling.note_failure(connection, organization_id)


def _active_organizations(runtime: Runtime) -> AbstractSet[str]:
    with runtime.database.operator() as connection:
        return {each.id for each in organizations.organizations(connection) if each.is_active}
