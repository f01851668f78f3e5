"""The service without Dagster, on a database that all tests of a module share."""

from collections.abc import Iterator

import httpx
import pytest

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.services import ServiceAlone, opened_service


@pytest.fixture(scope="module")
def service(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceAlone]:
    with opened_service(module_database, tmp_path_factory.mktemp("home")) as opened:
        yield opened


@pytest.fixture
def reader(service: ServiceAlone) -> Iterator[httpx.Client]:
    """A client that may read every organization."""
    with service.client("read") as opened:
        yield opened
