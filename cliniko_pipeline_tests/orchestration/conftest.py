from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import SkippedTime, opened_pipeline


@pytest.fixture
def deployment(database_url: URL, tmp_path: Path) -> Iterator[Deployment]:
    with (
        dg.instance_for_test() as instance,
        opened_pipeline(environment(database_url, tmp_path), instance=instance, waits=SkippedTime()) as pipeline,
        pipeline.sandbox([]) as sandbox,
    ):
        yield Deployment(pipeline, sandbox)
