"""Tests of row-level security: no organization reads, writes or counts rows of another, whoever owns the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables.organizations import OPERATOR_TABLES
from cliniko_pipeline.postgres.schema.isolation import organization_role
from cliniko_pipeline.postgres.tables import CONTACT_MAPPING, TENANT_TABLES
from cliniko_pipeline.postgres.writing.merge import upsert
from cliniko_pipeline_tests.support.tenants import MINE, SAMPLES, THEIRS, insertion, row_versions, sow

TENANT_NAMES = {name.replace('"', "").removeprefix("public.") for name in TENANT_TABLES}


@pytest.fixture(params=["module_database", "owner_database"], ids=["superuser", "owner"])
def database(request: pytest.FixtureRequest) -> Database:
    """Return a database with a row of each organization in every tenant table."""
    database = request.getfixturevalue(request.param)
    sow(database)
    return database


def test_every_tenant_table_has_forced_row_level_security(database: Database) -> None:
    with database.operator() as connection:
        found = connection.execute(
            sa.text(
                """
                select replace(relation.oid::regclass::text, '"', '') as name,
                    relrowsecurity and relforcerowsecurity as is_forced,
                    (
                        select array_agg((polcmd, polpermissive, pg_get_expr(polqual, polrelid),
                            pg_get_expr(polwithcheck, polrelid))::text)
                        from pg_policy where polrelid = relation.oid
                    ) as policies
                from pg_class as relation
                inner join pg_namespace as schema on schema.oid = relnamespace
                where nspname in ('cliniko', 'public') and relkind in ('r', 'p', 'v', 'm', 'f')
                """
            )
        ).all()
    tenant = [row for row in found if row.name in TENANT_NAMES]
    assert [row.name for row in tenant if not row.is_forced] == []
    context = "(organization_id = ( SELECT NULLIF(current_setting('app.organization_id'::text, true), ''::text)"
    for row in tenant:
        # A permissive policy grants access, and no other policy can widen the restrictive policy.
        assert sorted(policy[:5] for policy in row.policies) == ["(*,f,", "(*,t,"], row.name
        assert [policy.count(context) for policy in row.policies] == [2, 2], row.name
    # A request budget belongs to an API key, and the API keeps refused requests of removed organizations.
    known = {
        "api_tokens",
        "api_refusals",
        "contacts_filter",
        "database_identity",
        "notices",
        "request_budgets",
        "run_heartbeats",
        "schema_version",
    }
    known = {f"cliniko.{name}" for name in known} | {"contacts", "organizations", "api_credentials"}
    assert {row.name for row in found} == TENANT_NAMES | set(OPERATOR_TABLES) | known


def test_organization_role_has_only_the_tenant_tables(database: Database) -> None:
    with database.operator() as connection:
        parameters = {"name": organization_role(connection)}
        role = connection.execute(sa.text("select * from pg_roles where rolname = :name"), parameters).one()
        powers = connection.execute(
            sa.text(
                """
                select replace(relation.oid::regclass::text, '"', '') as name, privilege
                from pg_class as relation
                inner join pg_namespace as schema on schema.oid = relnamespace
                cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
                    as privilege
                where nspname in ('cliniko', 'public') and relkind in ('r', 'p', 'v', 'm', 'f')
                    and has_table_privilege(:name, relation.oid, privilege)
                """
            ),
            parameters,
        ).all()
        # Staging tables and their indexes stay with the connections that created them.
        has = connection.execute(
            sa.text(
                """
                select exists (select from pg_auth_members where member = cast(:name as regrole)) as memberships,
                    exists (select from pg_class as relation
                        inner join pg_namespace as schema on schema.oid = relnamespace
                        where relowner = cast(:name as regrole) and nspname !~ '^pg_(toast_)?temp_') as relations
                """
            ),
            parameters,
        ).one()
    powers_of_role = ("rolbypassrls", "rolcanlogin", "rolsuper", "rolcreaterole", "rolcreatedb")
    assert [power for power in powers_of_role if getattr(role, power)] == []
    assert tuple(has) == (False, False)
    assert {(row.name, row.privilege) for row in powers} == {
        (name, privilege) for name in TENANT_NAMES for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE")
    }


# These queries try to count the rows of the other organization.
QUERIES = (
    "select count(*) from {table} where organization_id = '{theirs}'",
    "select count(*) - 1 from {table}",
    "select sum((select count(*) from {table} as b where b.organization_id <> a.organization_id)) from {table} as a",
    "select count(*) from (select from {table} where organization_id = '{theirs}' for update) as locked",
)


def test_rows_of_another_organization_are_never_read(database: Database) -> None:
    with database.organization(MINE) as connection:
        for table in TENANT_TABLES:
            found = connection.exec_driver_sql(f"select organization_id from {table}").scalars().all()
            assert (table, found) == (table, [MINE])
            for query in QUERIES:
                statement = query.format(table=table, theirs=THEIRS)
                assert (statement, connection.exec_driver_sql(statement).scalar_one()) == (statement, 0)
            copied = _copy_out(connection, table)
            assert (table, MINE in copied, THEIRS in copied) == (table, True, False)


# PostgreSQL must refuse these statements in the context of MINE, or they must affect this many rows.
REFUSED, NOTHING = "refused", 0
ATTEMPTS = {
    "insert": ("{insert_theirs}", REFUSED),
    "insert an existing row": ("{insert_same} on conflict do nothing", REFUSED),
    "give a row away": ("update {table} set organization_id = '{theirs}'", REFUSED),
    "set the organization to nothing": ("update {table} set organization_id = ''", REFUSED),
    "take a row": ("update {table} set organization_id = '{mine}' where organization_id = '{theirs}'", NOTHING),
    "delete": ("delete from {table} where organization_id = '{theirs}'", NOTHING),
    "delete all": ("delete from {table}", 1),
    "truncate": ("truncate {table}", REFUSED),
    "turn row security off": ("set local row_security = off; select * from {table}", REFUSED),
    "drop the policy": ("drop policy organization_boundary on {table}", REFUSED),
    "disable row level security": ("alter table {table} disable row level security", REFUSED),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_rows_of_another_organization_are_never_written(database: Database, attempt: str) -> None:
    pattern, outcome = ATTEMPTS[attempt]
    outcomes = {}
    with _unchanged_rows_of_theirs(database):
        for table in SAMPLES:
            statement = pattern.format(
                table=table,
                mine=MINE,
                theirs=THEIRS,
                insert_theirs=insertion(table, THEIRS, row_of=MINE),
                insert_same=insertion(table, THEIRS),
            )
            try:
                with database.organization(MINE) as connection:
                    result = connection.exec_driver_sql(statement)
                    outcomes[table] = len(result.all()) if result.returns_rows else result.rowcount
            except ClinikoPipelineError:
                outcomes[table] = REFUSED
    assert outcomes == dict.fromkeys(TENANT_TABLES, outcome)


def test_upsert_of_a_key_of_another_organization_inserts_a_row(database: Database) -> None:
    mine, theirs = ("2", None, "unmatched", None, None), ("2", None, "ambiguous", "name", 7)
    with database.organization(THEIRS) as connection:
        upsert(connection, CONTACT_MAPPING, [theirs])
    with database.organization(MINE) as connection:
        written = upsert(connection, CONTACT_MAPPING, [mine])
    with database.organization(THEIRS) as connection:
        rows = connection.execute(sa.text("select patient_id, status, candidate_count from cliniko.contact_mapping"))
        assert rows.all() == [("2", "ambiguous", 7)]
    assert (written.inserted, written.updated) == (1, 0)


def test_prepared_statement_follows_the_context(database: Database) -> None:
    processes, wrong = set(), []
    for table in TENANT_TABLES:
        query = sa.text(f"select pg_backend_pid(), organization_id from {table} where organization_id <> :nobody")
        for _ in range(8):  # because the driver prepares a statement at its sixth execution
            for organization in (MINE, THEIRS):
                with database.organization(organization) as connection:
                    rows = connection.execute(query, {"nobody": "x"}).all()
                processes |= {row[0] for row in rows}
                if [row.organization_id for row in rows] != [organization]:
                    wrong.append((table, organization, rows))
    assert wrong == []
    assert len(processes) == 1, "the connection was not shared"


@pytest.mark.parametrize("context", ["select 1", "set local app.organization_id = ''"], ids=["none", "empty"])
def test_without_a_context_there_are_no_rows(database: Database, context: str) -> None:
    with database.operator() as connection:
        entry = f"set local role {organization_role(connection)}; {context}"
        connection.exec_driver_sql(entry)
        for table in TENANT_TABLES:
            assert (table, row_versions(connection, table)) == (table, [])
            assert connection.exec_driver_sql(f"delete from {table}").rowcount == 0
        assert connection.exec_driver_sql("select * from cliniko.organization_contacts()").all() == []
        assert connection.exec_driver_sql("select * from cliniko.persons()").all() == []
    for table in TENANT_TABLES:
        for organization in (MINE, ""):
            with pytest.raises(DatabaseSetupError), database.operator() as connection:
                connection.exec_driver_sql(f"{entry}; {insertion(table, organization, row_of=MINE)}")


def test_table_owner_sees_no_rows_outside_of_a_context(owner_database: Database) -> None:
    sow(owner_database)
    for table in TENANT_TABLES:
        with owner_database.operator() as connection:
            assert (table, row_versions(connection, table)) == (table, [])
        with pytest.raises(DatabaseSetupError), owner_database.operator() as connection:
            connection.execute(sa.text(insertion(table, MINE)))


@contextmanager
def _unchanged_rows_of_theirs(database: Database) -> Iterator[None]:
    """Assert that the block does not change, remove or add a row of the other organization."""

    def rows() -> dict[str, list[object]]:
        with database.organization(THEIRS) as connection:
            return {table: row_versions(connection, table) for table in TENANT_TABLES}

    before = rows()
    assert {len(found) for found in before.values()} == {1}
    yield
    assert rows() == before


def _copy_out(connection: Connection, source: str) -> str:
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(f"copy {source} to stdout".encode()) as copy:
        return b"".join(bytes(block) for block in copy).decode()
