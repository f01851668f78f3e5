"""Tests that the application's own policies on active_patients open nothing to the pipeline."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.schemas import ACTIVE_PATIENTS_TABLE, assert_one_line, schema_objects
from cliniko_pipeline_tests.support.tenants import MINE, SAMPLES, THEIRS, insertion, sow

TABLE = '"public"."active_patients"'
OPEN = "create policy application_sees_all on public.active_patients using (true) with check (true)"


@pytest.fixture
def opened(empty_database_url: URL) -> Iterator[Database]:
    """Yield rows of two organizations. The application's policy opens all rows, and the pipeline's policies follow."""
    administer(
        empty_database_url,
        sql("schema/application_tables"),
        ACTIVE_PATIENTS_TABLE,
        "alter table public.active_patients enable row level security",
    )
    database = Database(empty_database_url)
    schema.migrate(database)
    sow(database)
    administer(database.url, OPEN)
    yield database
    database.close()


def test_permissive_policy_opens_nothing_in_a_context(opened: Database) -> None:
    with opened.organization(MINE) as connection:
        seen = connection.execute(sa.text(f"select organization_id from {TABLE}")).scalars().all()
        assert seen == [MINE]
        theirs = f"where organization_id = '{THEIRS}'"
        for statement in (f"update {TABLE} set recent_appointment_count = 9 {theirs}", f"delete from {TABLE} {theirs}"):
            assert connection.execute(sa.text(statement)).rowcount == 0
        assert connection.execute(sa.text(f"update {TABLE} set recent_appointment_count = 9")).rowcount == 1
    for statement in (insertion(TABLE, THEIRS, row_of=MINE), f"update {TABLE} set organization_id = '{THEIRS}'"):
        with pytest.raises(DatabaseSetupError, match="row-level security"), opened.organization(MINE) as connection:
            connection.execute(sa.text(statement))


def test_own_policy_of_the_application_by_our_name_is_kept(empty_database_url: URL) -> None:
    """The error has the statement that renames the policy. Until it is executed, nothing is created."""
    own = "create policy organization_isolation on public.active_patients using (organization_id = current_user)"
    administer(empty_database_url, sql("schema/application_tables"), ACTIVE_PATIENTS_TABLE, own)
    database = Database(empty_database_url)
    try:
        before = schema_objects(database)
        with pytest.raises(DatabaseSetupError) as raised:
            schema.migrate(database)
        assert_one_line(
            raised.value, "policy organization_isolation of active_patients does not belong to the pipeline"
        )
        assert schema_objects(database) == before
        administer(database.url, str(raised.value).split("`")[1])
        schema.migrate(database)
        kept = "select qual from pg_policies where policyname = 'application_organization_isolation'"
        with database.operator() as connection:
            assert "CURRENT_USER" in connection.exec_driver_sql(kept).scalar_one()
        schema.require_isolation(database)
        # The application creates its own policy again.
        administer(
            database.url,
            "drop policy organization_isolation on public.active_patients",
            "drop policy organization_boundary on public.active_patients",
            own,
        )
        for look in (schema.require_isolation, schema.migrate):
            with pytest.raises(DatabaseSetupError, match="does not belong to the pipeline"):
                look(database)
    finally:
        database.close()


def test_application_sees_what_its_policy_opens(opened: Database) -> None:
    reader = f"reader_{uuid4().hex}"
    administer(opened.url, f"create role {reader}", f"grant select on public.active_patients to {reader}")
    try:
        with opened.operator() as connection:
            connection.execute(sa.text(f"set local role {reader}"))
            assert connection.execute(sa.text(f"select count(*) from {TABLE}")).scalar_one() == 2
    finally:
        administer(opened.url, f"drop owned by {reader}", f"drop role {reader}")


@pytest.mark.parametrize("boundary", ["with", "without"])
def test_removal_of_an_organization_keeps_other_rows(opened: Database, boundary: str) -> None:
    if boundary == "without":  # because the statements also restrict the organization themselves
        administer(opened.url, f"drop policy organization_boundary on {TABLE}")
    assert organizations.delete_tenant_rows(opened, MINE) == len(SAMPLES)
    with opened.organization(THEIRS) as connection:
        kept = connection.execute(sa.text(f"select organization_id from {TABLE}")).scalars().all()
    assert kept == [THEIRS]
