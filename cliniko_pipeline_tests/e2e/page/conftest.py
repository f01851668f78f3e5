"""A browser tab that shows the service without Dagster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.browsers import DagsterUI, opened_ui, pictures_folder
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pages import SURF, complaints
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.services import BY_HAND, NO_DAGSTER, add_organization


@pytest.fixture
def environ(database_url: URL, tmp_path: Path) -> dict[str, str]:
    return environment(database_url, tmp_path / "home") | BY_HAND | NO_DAGSTER


@pytest.fixture
def pipeline(environ: dict[str, str]) -> Iterator[PipelineUnderTest]:
    with opened_pipeline(environ) as opened:
        yield opened


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return pictures_folder(tmp_path)


@pytest.fixture
def refused() -> set[int]:
    """Return the statuses that a test expects, each of which the browser logs as an error."""
    return set()


@pytest.fixture
def surf_rehab(pipeline: PipelineUnderTest) -> None:
    """Store an organization without a sync."""
    add_organization(pipeline.database, SURF, "Surf Rehab")


@pytest.fixture
def ui(pipeline: PipelineUnderTest, pictures: Path, refused: set[int]) -> Iterator[DagsterUI]:
    """Yield a tab on the service. Assert at the end that the browser has logged only expected errors."""
    with served(pipeline.runtime) as address, opened_ui(address, pictures) as opened:
        yield opened
        assert complaints(opened, refused) == []
