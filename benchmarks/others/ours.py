"""Contender with the pipeline itself: Dagster runs the two extracting assets of the shipped definitions.

The measurement goes from the start of the first step to the end of the last step. It includes planning, requests,
checks, writing and Dagster's events, but not the start of the run and the transforming assets.
"""

import dagster as dg
from cryptography.fernet import Fernet

from benchmarks.fixtures.pipelines import add_organization, pipeline_environment, run_job
from benchmarks.measuring import Stopwatch, Taken
from benchmarks.others.tasks import Task
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings

ORGANIZATION = "clinic"

_EXTRACTION = dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    "extraction",
    # Asset checks are left out, because some send requests and some read tables of the transforming assets.
    selection=dg.AssetSelection.assets(patients, appointments).without_checks(),
    executor_def=dg.in_process_executor,
)


def run(task: Task) -> Taken:
    """Measure the assets."""
    environ = pipeline_environment(task.folder, task.host) | {
        "DATABASE_URL": task.database_url,
        "CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    watch = Stopwatch()
    with (
        open_runtime(load_settings(environ)) as runtime,
        dg.DagsterInstance.ephemeral() as instance,  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
    ):
        add_organization(runtime, ORGANIZATION, task.api_key, task.api_url)
        definitions = dg.Definitions.merge(build_definitions(runtime=runtime), dg.Definitions(jobs=[_EXTRACTION]))
        job = definitions.resolve_job_def(_EXTRACTION.name)
        steps = run_job(job, instance, ORGANIZATION, watch)
    if sorted(steps) != ["cliniko__appointments", "cliniko__patients"]:
        raise RuntimeError(f"The run had other steps than the measured ones: {steps}")
    return watch.taken()
