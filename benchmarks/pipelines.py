"""The pipeline as an operator sets it up, with a database of its own; organizations in it, and their jobs' runs."""

import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa

from benchmarks.measuring import Stopwatch
from benchmarks.reporting import BenchmarkError
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings


def pipeline_environment(home: str, sandbox_host: str) -> dict[str, str]:
    """Return the environment of a pipeline below `home` that may request from the sandbox as fast as it can."""
    return {
        **os.environ,
        "CLINIKO_PIPELINE_HOME": home,
        "CLINIKO_REQUESTS_PER_MINUTE": "100000",
        "CLINIKO_ALLOWED_HOSTS": sandbox_host,
    }


@contextmanager
def opened_pipeline(sandbox_host: str, **settings: str) -> Generator[tuple[Runtime, dict[str, str]]]:
    """Set up a pipeline in a temporary folder; yield it and the environment of its processes."""
    with tempfile.TemporaryDirectory(prefix="cliniko-benchmark-") as folder:
        environ = pipeline_environment(folder, sandbox_host) | settings
        with open_runtime(load_settings(environ)) as runtime:
            schema.migrate(runtime.database, create_application_tables=True)
            yield runtime, environ


def add_organization(
    runtime: Runtime, organization_id: str, api_key: str, api_url: str, patient_ids: Sequence[str] = ()
) -> None:
    """Store an organization with its key, and a contact for each of the patients."""
    encrypted = runtime.vault.encrypt(ClinikoCredentials(api_key, None, api_url))
    with runtime.database.operator() as connection:
        organizations.save(connection, organization_id, organization_id, encrypted, validated=False)
        connection.execute(
            sa.text(
                "insert into public.contacts (organization_id, cliniko_patient_id, name)"
                " select :organization_id, id, 'Contact ' || id from unnest(cast(:ids as text[])) as id"
            ),
            {"organization_id": organization_id, "ids": list(patient_ids)},
        )


def run_job(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    organization_id: str,
    watch: Stopwatch,
    config: Mapping[str, Any] | None = None,
) -> list[str]:
    """Run a job in this process, as a run worker does; return the names of its steps.

    The watch measures from the start of the first step to the end of the last. Raise `BenchmarkError` if the run fails.
    """
    steps: list[str] = []

    def observe(entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event is not None and event.is_step_start:
            if not steps:
                watch.start()
            steps.append(event.step_key or "")
        elif event is not None and event.is_step_success:
            watch.stop()

    ensure_partitions(instance, [organization_id])
    run_id = str(uuid4())
    instance.add_event_listener(run_id, observe)  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    result = job.execute_in_process(
        instance=instance,
        run_id=run_id,
        partition_key=organization_id,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **(config or {})},
    )
    if not result.success:
        raise BenchmarkError(f"the run of {job.name} failed")
    return steps
