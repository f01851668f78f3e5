"""A database that is filled once per test module, and pipelines on copies of this database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.engine import URL, make_url

from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline


def prepared_database(prepare: Callable[[PipelineUnderTest], None]) -> Callable[..., Iterator[dict[str, str]]]:
    """Return a fixture of a module. It yields the variables of a pipeline on a database that `prepare` has filled."""

    @pytest.fixture(scope="module")
    def prepared(server_url: URL, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
        with created_database(server_url, template) as url:
            environ = environment(url, tmp_path_factory.mktemp("prepared"))
            with opened_pipeline(environ) as pipeline:
                prepare(pipeline)
            yield environ

    return prepared


@contextmanager
def copied_pipeline(server_url: URL, environ: dict[str, str]) -> Iterator[PipelineUnderTest]:
    """Open a pipeline on a copy of the database of `prepared_database`."""
    with created_database(server_url, make_url(environ["DATABASE_URL"]).database or "") as url:
        copy = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with opened_pipeline(environ | {"DATABASE_URL": copy}) as pipeline:
            yield pipeline
