"""Tests of which tables get the pipeline's policies: its own and those of assets, with partitions, and no others."""

from collections.abc import Iterator

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.writing import frames
from cliniko_pipeline_tests.support.databases import administer, created_database, organization_role_of
from cliniko_pipeline_tests.support.schemas import ACTIVE_PATIENTS_TABLE, assert_one_line
from cliniko_pipeline_tests.support.tenants import MINE, THEIRS, insertion, sow

TABLE = '"public"."active_patients"'
INVOICES = (
    "create table public.invoices (id integer, organization_id text, amount integer)",
    f"insert into public.invoices values (1, '{MINE}', 10), (2, '{THEIRS}', 20)",
    "alter table public.invoices enable row level security",
    """
    create policy organization_isolation on public.invoices
    using (organization_id = current_setting('app.organization_id', true))
    """,
)
STATE = """
select relrowsecurity, relforcerowsecurity, relacl::text,
    (select string_agg(concat_ws(' ', oid, xmin, polname, pg_get_expr(polqual, polrelid)), ', ')
        from pg_policy where polrelid = pg_class.oid),
    (select string_agg(invoices::text, ', ' order by id) from public.invoices)
from pg_class where oid = 'public.invoices'::regclass
"""


@pytest.fixture
def application(empty_database_url: URL) -> Iterator[Database]:
    administer(empty_database_url, sql("schema/application_tables"))
    database = Database(empty_database_url)
    yield database
    database.close()


def state_of_invoices(database: Database) -> tuple[object, ...]:
    with database.operator() as connection:
        return tuple(connection.execute(sa.text(STATE)).one())


def test_application_table_with_a_policy_of_our_name_is_untouched(application: Database) -> None:
    administer(application.url, *INVOICES)
    before = state_of_invoices(application)
    assert schema.migrate(application).warnings == ()
    sow(application)
    organizations.delete_tenant_rows(application, MINE)
    assert state_of_invoices(application) == before


def test_table_that_an_earlier_version_captured_is_left_and_named(application: Database) -> None:
    schema.migrate(application)
    role = organization_role_of(application.url)
    administer(
        application.url,
        *INVOICES,
        f"create policy organization_boundary on public.invoices as restrictive to {role} using (true)",
        "comment on schema cliniko is 'earlier'",
    )
    before = state_of_invoices(application)
    migration = schema.migrate(application)
    assert ["public.invoices" in warning for warning in migration.warnings] == [True]
    sow(application)
    organizations.delete_tenant_rows(application, MINE)
    assert state_of_invoices(application) == before
    # If an asset does write the table, one command puts it under the policies.
    administer(application.url, migration.warnings[0].split("`")[1], "comment on schema cliniko is 'earlier'")
    assert schema.migrate(application).warnings == ()
    organizations.delete_tenant_rows(application, MINE)
    assert state_of_invoices(application)[-1] == f"(2,{THEIRS},20)"


def test_table_that_an_earlier_version_made_for_an_asset_is_kept(application: Database) -> None:
    schema.migrate(application)
    frames.write(application, MINE, "clinic", "reports", pd.DataFrame({"x": [1, 2]}))
    administer(
        application.url,
        "comment on policy organization_isolation on clinic.reports is null",
        "comment on schema cliniko is 'earlier'",
    )
    assert schema.migrate(application).warnings == ()
    assert organizations.delete_tenant_rows(application, MINE) == 2


def test_partitions_of_active_patients_are_protected(application: Database) -> None:
    partition = "create table public.part_{0} partition of public.active_patients for values with (modulus 2, remainder"
    administer(
        application.url,
        ACTIVE_PATIENTS_TABLE.rstrip().removesuffix(")") + ") partition by hash (organization_id)",
        partition.format(0) + " 0)",
        "create role reader_of_parts",
    )
    try:
        schema.migrate(application)
        administer(application.url, partition.format(1) + " 1)")
        with pytest.raises(DatabaseSetupError) as raised:
            schema.require_isolation(application)
        assert_one_line(raised.value, "part_1:", "cliniko-pipeline migrate")
        assert schema.migrate(application).changed
        schema.require_isolation(application)
        sow(application)
        administer(application.url, "grant select on public.part_0, public.part_1 to reader_of_parts")
        with application.operator() as connection:
            connection.exec_driver_sql("set local role reader_of_parts")
            union = "select organization_id from public.part_0 union all select organization_id from public.part_1"
            assert connection.exec_driver_sql(union).scalars().all() == []
            connection.exec_driver_sql(f"set local app.organization_id = '{MINE}'")
            assert connection.exec_driver_sql(union).scalars().all() == [MINE]
    finally:
        administer(application.url, "drop owned by reader_of_parts", "drop role reader_of_parts")


IDS = {
    "text collate ci": ("acme", "ACME"),
    "varchar(40)": ("acme", "ACME"),
    "citext": ("acme", "ACME"),
    "uuid": ("6f9619ff-8b86-d011-b42d-00c04fc964f1", "6f9619ff-8b86-d011-b42d-00c04fc964f2"),
    "integer": ("1", "2"),
}


@pytest.mark.parametrize("kind", IDS)
def test_rows_are_told_apart_whatever_the_type_of_the_column(debian_server_url: URL, kind: str) -> None:
    """A collation under which two different texts are equal does not open rows of the other organization."""
    with created_database(debian_server_url, "template0", "encoding 'UTF8'") as url:
        administer(
            url,
            sql("schema/application_tables"),
            "create extension citext",
            "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            ACTIVE_PATIENTS_TABLE.replace("organization_id text", f"organization_id {kind}"),
            f"alter table public.contacts alter organization_id type {kind} using null",
        )
        database = Database(url)
        schema.migrate(database)
        mine, theirs = IDS[kind]
        administer(
            url,
            insertion(TABLE, MINE).replace(MINE, mine),
            insertion(TABLE, THEIRS).replace(THEIRS, theirs),
            f"insert into contacts (id, organization_id) values (gen_random_uuid(), '{mine}')",
            f"insert into contacts (id, organization_id) values (gen_random_uuid(), '{theirs}')",
        )
        with database.organization(mine) as connection:
            seen = connection.exec_driver_sql(f"select organization_id::text from {TABLE}").scalars().all()
            deleted = connection.exec_driver_sql(f"delete from {TABLE}").rowcount
            contacts = connection.exec_driver_sql("select count(*) from cliniko.organization_contacts()").scalar_one()
        assert (seen, deleted, contacts) == ([mine], 1, 1)
        database.close()
