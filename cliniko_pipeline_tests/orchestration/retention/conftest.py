from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, SkippedTime, opened_pipeline
from cliniko_pipeline_tests.support.synced_organizations import SyncedOrganization, synced_numbers


@pytest.fixture
def stored_pipeline(database_url: URL, tmp_path: Path) -> Iterator[PipelineUnderTest]:
    """Yield a pipeline whose Dagster instance is stored in PostgreSQL."""
    environ = environment(database_url, tmp_path)
    with pytest.MonkeyPatch.context() as variables:
        for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
            # Opening an instance sets these variables, so they are set here to be restored after the test.
            variables.setenv(name, "")
        with (
            open_runtime(load_settings(environ)) as runtime,
            open_instance(runtime) as instance,
            opened_pipeline(environ, instance=instance, waits=SkippedTime()) as pipeline,
        ):
            yield pipeline


@pytest.fixture
def clinic(stored_pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    with synced_numbers(stored_pipeline, 2, "2026-06-01T09:00:00Z") as organization:
        yield organization
