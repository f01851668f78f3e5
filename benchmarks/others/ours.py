"""Ours: the two extracting assets as Dagster runs them, on the definitions as shipped.

What counts is from the start of the first step to the end of the last: planning, requests, checks, writing, and what
Dagster stores of it. What Dagster does before and after that, and the transforming assets, do not.
"""

import os
from uuid import uuid4

import dagster as dg
from cryptography.fernet import Fernet

from benchmarks.others.measuring import Stopwatch, Task
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings

ORGANIZATION = "clinic"

_EXTRACTION = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "extraction",
    # Some of the checks cost requests, and others read what the transforming assets write.
    selection=dg.AssetSelection.assets(patients, appointments).without_checks(),
    executor_def=dg.in_process_executor,
)


def run(task: Task, watch: Stopwatch) -> None:
    """Measures; the process ends with an error where the run fails."""
    environ = {
        **os.environ,
        "DATABASE_URL": task.database_url,
        "CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "CLINIKO_PIPELINE_HOME": task.folder,
        "CLINIKO_REQUESTS_PER_MINUTE": "100000",
        "CLINIKO_ALLOWED_HOSTS": task.host,
    }
    with (
        open_runtime(load_settings(environ)) as runtime,
        dg.DagsterInstance.ephemeral() as instance,  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    ):
        encrypted = runtime.vault.encrypt(ClinikoCredentials(task.api_key, None, task.api_url))
        with runtime.database.operator() as connection:
            organizations.save(connection, ORGANIZATION, ORGANIZATION, encrypted, validated=False)
        ensure_partitions(instance, [ORGANIZATION])
        run_id = str(uuid4())
        steps = _Steps(watch)
        instance.add_event_listener(run_id, steps)  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
        definitions = dg.Definitions.merge(build_definitions(runtime=runtime), dg.Definitions(jobs=[_EXTRACTION]))
        definitions.resolve_job_def(_EXTRACTION.name).execute_in_process(
            instance=instance,
            run_id=run_id,
            partition_key=ORGANIZATION,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        if sorted(steps.names) != ["cliniko__appointments", "cliniko__patients"]:
            raise RuntimeError(f"The run had other steps than those to be measured: {steps.names}")


class _Steps:
    """Is told of the run's events in the thread that runs it, when they happen."""

    def __init__(self, watch: Stopwatch) -> None:
        self.names: list[str] = []
        self._watch = watch

    def __call__(self, entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event is None:
            return
        if event.is_step_start:
            if not self.names:
                self._watch.start()
            self.names.append(event.step_key or "")
        elif event.is_step_success:
            self._watch.stop()
