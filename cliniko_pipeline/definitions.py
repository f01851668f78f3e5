"""The composition root for Dagster: the place that collects all definitions."""

import dagster as dg

from cliniko_pipeline.orchestration.assets import ASSETS
from cliniko_pipeline.orchestration.checks import CHECKS
from cliniko_pipeline.orchestration.instance.consoles import quiet_console
from cliniko_pipeline.orchestration.io_managers import postgres_io_manager
from cliniko_pipeline.orchestration.jobs import cliniko_counts, cliniko_prune, cliniko_sync
from cliniko_pipeline.orchestration.resources import ProgressListener, cliniko_resource, runtime_resource
from cliniko_pipeline.orchestration.schedules import cliniko_count_comparisons, cliniko_prunes, cliniko_syncs
from cliniko_pipeline.orchestration.sensors import (
    alerts,
    failed_runs,
    lost_runs,
    organization_partitions,
    stale_organizations,
    webhook_deliveries,
    webhook_syncs,
)
from cliniko_pipeline.runtime import Runtime


def build_definitions(*, runtime: Runtime | None = None, listener: ProgressListener | None = None) -> dg.Definitions:
    """Return all definitions.

    The command line and tests run jobs in their own process. They can pass their own runtime, instead of one that is
    opened with the settings of the environment. They can also pass a listener for the events of the Cliniko clients.
    """
    return dg.Definitions(
        assets=ASSETS,
        asset_checks=CHECKS,
        jobs=[cliniko_sync, cliniko_counts, cliniko_prune],
        schedules=[cliniko_syncs, cliniko_count_comparisons, cliniko_prunes],
        sensors=[
            organization_partitions,
            lost_runs,
            failed_runs,
            stale_organizations,
            alerts,
            webhook_syncs,
            webhook_deliveries,
        ],
        executor=dg.in_process_executor,
        loggers={"console": quiet_console},
        resources={
            "runtime": runtime_resource()
            if runtime is None
            else dg.ResourceDefinition.hardcoded_resource(runtime, "The runtime of this process"),
            "cliniko": cliniko_resource(listener),
            "postgres": postgres_io_manager(),
        },
    )


@dg.definitions
def definitions() -> dg.Definitions:
    """Return the definitions that `workspace.yaml` loads."""
    return build_definitions()
