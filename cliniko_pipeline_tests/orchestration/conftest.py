from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline_tests.support.deployments import Deployment, opened_deployment
from cliniko_pipeline_tests.support.environments import environment


@pytest.fixture
def variables() -> dict[str, str]:
    """Return settings in addition to the database and the home. Modules replace this fixture."""
    return {}


@pytest.fixture
def deployment(database_url: URL, tmp_path: Path, variables: dict[str, str]) -> Iterator[Deployment]:
    with opened_deployment(environment(database_url, tmp_path) | variables) as opened:
        yield opened
