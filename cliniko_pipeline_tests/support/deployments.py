"""Two organizations on a real Dagster instance, the daemon's part played by the test."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
from sqlalchemy.engine import Connection

from cliniko_pipeline.orchestration.schedules import cliniko_syncs
from cliniko_pipeline.orchestration.sensors import failed_runs, organization_partitions
from cliniko_pipeline.postgres import scheduling
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)


class Deployment:
    """Two organizations, and the daemon's part played by the test."""

    def __init__(self, pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
        self.pipeline = pipeline
        self.sandbox = sandbox
        self.accounts = {name: Account(name, "au4", f"{name}-key-au4") for name in ("alpha", "beta")}
        for name, account in self.accounts.items():
            sandbox.add(account)
            pipeline.add_organization(name, sandbox, account)

    @property
    def resources(self) -> dict[str, Any]:
        return {"runtime": self.pipeline.runtime}

    def tick(self, at: datetime = NOW) -> dict[str, dict[str, str]]:
        """What the schedule requests: the tags of each organization's run."""
        context = dg.build_schedule_context(
            instance=self.pipeline.instance, scheduled_execution_time=at, resources=self.resources
        )
        found = cliniko_syncs.evaluate_tick(context)
        return {request.partition_key or "": dict(request.tags) for request in found.run_requests or []}

    def watch_partitions(self) -> str | None:
        """Does what the sensor says; returns why it says nothing."""
        context = dg.build_sensor_context(instance=self.pipeline.instance, resources=self.resources)
        found = organization_partitions.evaluate_tick(context)
        for request in found.dynamic_partitions_requests or []:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.pipeline.instance.add_dynamic_partitions("organizations", list(request.partition_keys))
            else:
                for key in request.partition_keys:
                    self.pipeline.instance.delete_dynamic_partition("organizations", key)
        return found.skip_message

    @property
    def partitions(self) -> set[str]:
        return set(self.pipeline.instance.get_dynamic_partitions("organizations"))

    def sync(self, name: str) -> dg.ExecuteInProcessResult:
        result = self.pipeline.sync(name)
        if not result.success:
            event = next(each for each in result.all_events if each.event_type_value == "PIPELINE_FAILURE")
            context = dg.build_run_status_sensor_context(
                sensor_name="failed_runs",
                dagster_event=event,
                dagster_instance=self.pipeline.instance,
                dagster_run=result.dagster_run,
                resources=self.resources,
            ).for_run_failure()
            failed_runs(context)
        return result

    def scheduling(self, name: str) -> scheduling.Scheduling:
        with self.pipeline.database.operator() as connection:
            return next(each for each in scheduling.schedulings(connection) if each.organization_id == name)


def paused(connection: Connection, name: str, *, reason: str, run_id: str) -> None:
    """Pauses the organization for the credentials that are stored now."""
    digest = scheduling.credentials_digest(connection, name)
    scheduling.pause(connection, name, reason=reason, run_id=run_id, credentials=digest)
