"""Two organizations on a Dagster instance in memory. The test does the work of the daemon."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.orchestration.schedules import cliniko_syncs
from cliniko_pipeline.orchestration.sensors import failed_runs, organization_partitions
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.hostile_accounts import cliniko_text, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, SkippedTime, opened_pipeline

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)


class Deployment:
    """The organizations alpha and beta, whose schedules and sensors are evaluated by the test."""

    def __init__(self, pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
        self.pipeline = pipeline
        self.sandbox = sandbox
        self.accounts = {name: Account(name, "au4", f"{name}-key-au4") for name in ("alpha", "beta")}
        for name, account in self.accounts.items():
            sandbox.add(account)
            pipeline.add_organization(name, sandbox, account)

    @property
    def database(self) -> Database:
        return self.pipeline.database

    @property
    def instance(self) -> dg.DagsterInstance:
        return self.pipeline.instance

    @property
    def resources(self) -> dict[str, Any]:
        return {"runtime": self.pipeline.runtime}

    def requests(self, schedule: dg.ScheduleDefinition, at: datetime = NOW) -> list[dg.RunRequest]:
        """Evaluate the schedule at this time. Return the run requests."""
        context = dg.build_schedule_context(scheduled_execution_time=at, resources=self.resources)
        # Dagster builds this context only for instances on disk, which are eight times slower.
        context._instance, context._instance_ref = self.instance, object()
        return list(schedule.evaluate_tick(context).run_requests or [])

    def tick(self, at: datetime = NOW) -> dict[str, dict[str, str]]:
        """Return the tags of each run that the schedule of syncs requests, by organization."""
        return {request.partition_key or "": dict(request.tags) for request in self.requests(cliniko_syncs, at)}

    def evaluate(self, sensor: dg.SensorDefinition) -> Any:
        """Evaluate the sensor once."""
        return sensor.evaluate_tick(dg.build_sensor_context(instance=self.instance, resources=self.resources))

    def watch_partitions(self) -> str | None:
        """Apply the partition changes that the sensor requests. Return the sensor's skip message."""
        found = self.evaluate(organization_partitions)
        for request in found.dynamic_partitions_requests or []:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions("organizations", list(request.partition_keys))
            else:
                for key in request.partition_keys:
                    self.instance.delete_dynamic_partition("organizations", key)
        return found.skip_message

    @property
    def partitions(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions("organizations"))

    def sync(self, name: str, **options: Any) -> dg.ExecuteInProcessResult:
        """Sync the organization, and report a failure to the sensor of failed runs."""
        result = self.pipeline.sync(name, **options)
        if not result.success:
            event = next(event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE")
            context = dg.build_run_status_sensor_context(
                sensor_name="failed_runs",
                dagster_event=event,
                dagster_instance=self.instance,
                dagster_run=result.dagster_run,
                resources=self.resources,
            ).for_run_failure()
            failed_runs(context)
        return result

    def change(self, name: str) -> None:
        """Add a patient to the organization's account."""
        account = self.accounts[name]
        now = cliniko_text(datetime.now(UTC))
        number = len(account.records["patients"]) + 1
        account.put("patients", patient(str(number), "Ann", created_at=now, updated_at=now))

    def add_run(self, status: dg.DagsterRunStatus, tags: Mapping[str, str]) -> dg.DagsterRun:
        """Store a run of the main job in this state."""
        job = self.pipeline.definitions.resolve_job_def("cliniko_sync")
        return self.instance.create_run_for_job(job, status=status, tags=dict(tags))

    def scheduling(self, name: str) -> scheduling.Scheduling:
        with self.database.operator() as connection:
            return next(row for row in scheduling.schedulings(connection) if row.organization_id == name)

    def pause(self, name: str, reason: str = "a reason", run_id: str = "run") -> None:
        with self.database.operator() as connection:
            paused(connection, name, reason=reason, run_id=run_id)

    def let_refusals_age(self) -> None:
        """Date refusals back, so that the next refusal of the same credentials confirms them."""
        self.execute(
            "update cliniko.scheduling set refused_at = refused_at - cast(:age as interval)",
            age=scheduling.REFUSAL_CONFIRMED_AFTER,
        )

    def execute(self, statement: str, **values: object) -> list[Any]:
        """Execute the statement as the operator; return the first column of its rows."""
        with self.database.operator() as connection:
            result = connection.execute(sa.text(statement), values)
            return list(result.scalars()) if result.returns_rows else []


@contextmanager
def opened_deployment(environ: Mapping[str, str]) -> Iterator[Deployment]:
    with opened_pipeline(environ, waits=SkippedTime()) as pipeline, pipeline.sandbox([]) as sandbox:
        yield Deployment(pipeline, sandbox)


def paused(connection: Connection, name: str, *, reason: str, run_id: str) -> None:
    """Pause the organization until its present credentials change."""
    digest = scheduling.credentials_digest(connection, name)
    scheduling.pause(connection, name, reason=reason, run_id=run_id, credentials=digest)
