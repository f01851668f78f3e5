"""Tests of the Dagster instance's storage: its place in the database, poolers, and reports of faults."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance, upgrade_storage
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.poolers import pooler

BEFORE_DEFAULT_LIMITS = "6b7fb194ff9c"
"""A revision of Dagster's tables, after which the column `using_default_limit` was added."""

TABLES = """
    select schemaname || '.' || tablename from pg_tables where schemaname not in ('pg_catalog', 'information_schema')
"""


def tables(url: URL) -> set[str]:
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
    try:
        with engine.connect() as connection:
            return set(connection.exec_driver_sql(TABLES).scalars())
    finally:
        engine.dispose()


class Opening:
    """An opener of instances, which are closed at the end of the test."""

    def __init__(self, stack: ExitStack, home: Path) -> None:
        self._stack = stack
        self._home = home

    def runtime(self, url: URL) -> Runtime:
        return self._stack.enter_context(open_runtime(load_settings(environment(url, self._home))))

    def instance(self, url: URL) -> dg.DagsterInstance:
        return self._stack.enter_context(open_instance(self.runtime(url)))


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opening]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as variables:
        for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
            variables.setenv(name, "")
        yield Opening(stack, tmp_path)


def test_storage_never_touches_public(database_url: URL, opening: Opening) -> None:
    """This includes a pooler that drops the start-up parameter `options`, and an application that has such tables."""
    administer(database_url, "create table public.runs (id integer primary key)")
    before = tables(database_url)
    with pooler(database_url, ignore_startup_parameters="options") as url:
        instance = opening.instance(url)
        instance.optimize_for_webserver(statement_timeout=5000, pool_recycle=3600, max_overflow=20)
        assert instance.get_runs() == []
        made = tables(database_url) - before
    assert {"dagster.runs", "dagster.event_logs", "dagster.jobs", "dagster.alembic_version"} <= made
    assert {name.partition(".")[0] for name in made} == {"dagster"}


def test_schema_that_is_not_dagsters_is_refused(database_url: URL, opening: Opening) -> None:
    administer(database_url, "create schema dagster", "create table dagster.runs (id integer, distance integer)")
    before = tables(database_url)
    with pytest.raises(DatabaseSetupError, match="runs lacks run_id, run_body, status; event_logs is missing"):
        opening.instance(database_url)
    assert tables(database_url) == before


def test_empty_schema_is_used(database_url: URL, opening: Opening) -> None:
    administer(database_url, "create schema dagster")
    assert opening.instance(database_url).get_runs() == []
    assert "dagster.runs" in tables(database_url)


def test_storage_that_lost_its_schema_is_not_made_elsewhere(database_url: URL, opening: Opening) -> None:
    instance = opening.instance(database_url)
    reference = instance.get_ref()
    instance.dispose()
    administer(database_url, "drop schema dagster cascade")
    before = tables(database_url)
    with pytest.raises(DatabaseSetupError, match="The schema dagster cannot be used"):
        dg.DagsterInstance.from_ref(reference)
    assert tables(database_url) == before


def test_plain_url_leads_to_dagsters_schema(
    database_url: URL, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the value of DATABASE_URL, Dagster's own commands open the same storage as the pipeline's commands."""
    with opening.instance(database_url) as instance:
        instance.add_dynamic_partitions("organizations", ["surf-rehab"])
    before = tables(database_url)
    plain = database_url.set(drivername="postgres").render_as_string(hide_password=False)
    monkeypatch.setenv(STORAGE_VARIABLE, plain)
    with dg.DagsterInstance.get() as instance:
        assert instance.get_dynamic_partitions("organizations") == ["surf-rehab"]
    assert tables(database_url) == before


def test_storage_of_an_older_dagster_is_brought_up_to_date(database_url: URL, opening: Opening) -> None:
    runtime = opening.runtime(database_url)
    upgrade_storage(runtime)
    newest = version_of_storage(runtime)
    administer(
        database_url,
        f"update dagster.alembic_version set version_num = '{BEFORE_DEFAULT_LIMITS}'",
        "alter table dagster.concurrency_limits drop column using_default_limit",
    )
    upgrade_storage(runtime)
    assert version_of_storage(runtime) == newest
    administer(database_url, "select using_default_limit from dagster.concurrency_limits")
    assert tables(database_url) >= {"dagster.runs"}


def version_of_storage(runtime: Runtime) -> str:
    with runtime.database.operator() as connection:
        return connection.exec_driver_sql("select version_num from dagster.alembic_version").scalar_one()


def test_storage_fault_is_not_blamed_on_dagster_yaml(database_url: URL, opening: Opening) -> None:
    """Only errors of dagster.yaml advise to look at dagster.yaml."""
    runtime = opening.runtime(database_url)
    opening.instance(database_url).dispose()
    administer(database_url, "drop table dagster.instance_info", "create view dagster.instance_info as select 1 as id")
    with pytest.raises(DatabaseSetupError, match='relation "instance_info" already exists') as raised:
        open_instance(runtime)
    assert "dagster.yaml" not in str(raised.value)
    configuration = runtime.settings.dagster_home / "dagster.yaml"
    configuration.write_text("storage: {nowhere: {}}")
    with pytest.raises(DatabaseSetupError, match="check its dagster"):
        open_instance(runtime)
