"""Tests that a copy of a database sends nothing until it is adopted."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.schedules import cliniko_count_comparisons, cliniko_syncs
from cliniko_pipeline.orchestration.sensors import alerts, webhook_deliveries, webhook_syncs
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.identity import copy_problem
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.databases import administer, organization_role_of
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.pipelines import errors_of
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused

COPY = "update cliniko.database_identity set identity = 'production of server 1'"


@pytest.fixture
def copy_url(server_url: URL) -> Iterator[URL]:
    """Yield the URL of a copy that the test makes."""
    name = f"test_{uuid4().hex}"
    yield server_url.set(database=name)
    role = organization_role_of(server_url.set(database=name))
    administer(server_url, f"drop database if exists {name} with (force)", f"drop role if exists {role}")


def problem_of(url: URL) -> str | None:
    database = Database(url)
    try:
        schema.migrate(database)
        return copy_problem(database)
    finally:
        database.close()


def test_database_made_of_a_template_is_a_copy(server_url: URL, database_url: URL, copy_url: URL) -> None:
    assert problem_of(database_url) is None
    administer(server_url, f"create database {copy_url.database} template {database_url.database}")
    problem = problem_of(copy_url)
    assert problem is not None
    assert str(database_url.database) in problem
    assert "migrate --adopt" in problem
    database = Database(copy_url)
    schema.migrate(database, adopts=True)
    database.close()
    assert (problem_of(copy_url), problem_of(database_url)) == (None, None)


def test_copy_sends_nothing_until_adopted(deployment: Deployment) -> None:
    deployment.watch_partitions()
    deployment.execute(COPY)
    result = deployment.sync("alpha", log_level="CRITICAL")
    assert not result.success
    assert "is a copy of the one" in errors_of(result)[0]
    assert deployment.sandbox.counters.requests() == 0
    assert deployment.tick() == {}
    assert deployment.requests(cliniko_count_comparisons) == []
    for sensor in (alerts, webhook_deliveries, webhook_syncs):
        assert "is a copy of the one" in str(deployment.evaluate(sensor).skip_message)
    schema.migrate(deployment.database, adopts=True)
    assert {each.partition_key for each in deployment.requests(cliniko_syncs)} == {"alpha", "beta"}
    assert deployment.sync("alpha").success


@pytest.mark.slow
def test_copy_is_reported_by_every_command(command: CommandLine, clinics: Clinics) -> None:
    clinics.open(["alpha"])
    with clinics.database.operator() as connection:
        connection.exec_driver_sql(COPY)
    assert_refused(command("sync", "alpha"), "is a copy of the one", "migrate --adopt")
    assert "✗ The database is not a copy" in command("doctor").stdout
    assert "is a copy of the one" in command("status").stderr
    assert "is a copy of the one" in command("migrate").stdout
    adopted = command("migrate", "--adopt")
    assert adopted.returncode == 0
    assert "copy" not in adopted.stdout
    assert command("sync", "alpha", "--as-of", "2026-06-15T09:30:00Z").returncode == 0
    assert clinics.active("alpha") == 1
