"""Row-level security: no organization reads, writes or counts rows of another one.

Each test runs against a database that a superuser owns and one that an ordinary role owns, and goes through every
tenant table. The context itself is tested in test_organization_context.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError
from cliniko_pipeline.postgres.engine import ORGANIZATION_ROLE, Database
from cliniko_pipeline.postgres.merge import upsert
from cliniko_pipeline.postgres.organizations import OPERATORS_TABLES
from cliniko_pipeline.postgres.tables import CONTACT_MAPPING, TENANT_TABLES
from cliniko_pipeline_tests.support.tenants import MINE, SAMPLES, THEIRS, insertion, row_versions, sow

API_TABLES = {"cliniko.api_tokens", "cliniko.api_refusals"}
"""Tables of the API. They keep refused requests of removed organizations."""


@pytest.fixture(scope="module", params=["module_database", "owner_database"], ids=["superuser", "owner"])
def shared(request: pytest.FixtureRequest) -> Database:
    return request.getfixturevalue(request.param)


@pytest.fixture
def database(shared: Database) -> Database:
    """A database with a row of each organization in every tenant table."""
    sow(shared)
    return shared


def test_every_tenant_table_has_forced_row_level_security(database: Database) -> None:
    with database.operator() as connection:
        found = connection.execute(
            sa.text(
                """
                select table_class.oid::regclass::text as name, relrowsecurity and relforcerowsecurity as is_forced,
                    (
                        select array_agg((polcmd, polpermissive, pg_get_expr(polqual, polrelid),
                            pg_get_expr(polwithcheck, polrelid))::text)
                        from pg_policy where polrelid = table_class.oid
                    ) as policies
                from pg_class as table_class
                inner join pg_namespace as schema on schema.oid = relnamespace
                inner join pg_attribute on attrelid = table_class.oid
                where nspname in ('cliniko', 'public') and attname = 'organization_id' and not attisdropped
                    and relkind in ('r', 'p', 'v', 'm', 'f')
                """
            )
        ).all()
        known = set(
            connection.execute(
                sa.text("select name::regclass::text from unnest(cast(:names as text[])) as name"),
                {"names": list(TENANT_TABLES)},
            ).scalars()
        )
    operators = {"contacts", "api_credentials", *OPERATORS_TABLES, *API_TABLES}
    tenant = [row for row in found if row.name not in operators]
    assert {row.name for row in tenant} == known
    assert [row.name for row in tenant if not row.is_forced] == []
    context = "(organization_id = ( SELECT NULLIF(current_setting('app.organization_id'::text, true), ''::text)"
    for row in tenant:
        # A permissive policy that grants, and a restrictive one that no other policy can widen.
        assert sorted(policy[:5] for policy in row.policies) == ["(*,f,", "(*,t,"], row.name
        assert [policy.count(context) for policy in row.policies] == [2, 2], row.name


def test_every_tenant_table_has_a_sample_row() -> None:
    assert set(SAMPLES) == set(TENANT_TABLES)


def test_tables_without_row_level_security_are_known(database: Database) -> None:
    with database.operator() as connection:
        found = set(
            connection.execute(
                sa.text(
                    """
                    select table_class.oid::regclass::text
                    from pg_class as table_class
                    inner join pg_namespace as schema on schema.oid = relnamespace
                    where nspname = 'cliniko' and relkind in ('r', 'p', 'v', 'm', 'f') and not relrowsecurity
                    """
                )
            ).scalars()
        )
        key = connection.execute(
            sa.text(
                "select attname from pg_attribute where attrelid = 'cliniko.request_budgets'::regclass and attnum = 1"
            )
        ).scalar_one()
    assert found == {
        *OPERATORS_TABLES,
        *API_TABLES,
        "cliniko.notices",
        "cliniko.request_budgets",
        "cliniko.schema_version",
    }
    # A request budget belongs to an API key, which several organizations may share.
    assert key == "key_digest"


def test_organization_role_has_only_the_tenant_tables(database: Database) -> None:
    with database.operator() as connection:
        role = connection.execute(
            sa.text("select * from pg_roles where rolname = :name"), {"name": ORGANIZATION_ROLE}
        ).one()
        powers = connection.execute(
            sa.text(
                """
                select relation.oid::regclass::text as name, privilege
                from pg_class as relation
                inner join pg_namespace as schema on schema.oid = relnamespace
                cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
                    as privilege
                where nspname in ('cliniko', 'public') and relkind in ('r', 'p', 'v', 'm', 'f')
                    and has_table_privilege(:name, relation.oid, privilege)
                """
            ),
            {"name": ORGANIZATION_ROLE},
        ).all()
        memberships = connection.execute(
            sa.text("select count(*) from pg_auth_members where member = cast(:name as regrole)"),
            {"name": ORGANIZATION_ROLE},
        ).scalar_one()
        owned = connection.execute(
            sa.text("select count(*) from pg_class where relowner = cast(:name as regrole)"),
            {"name": ORGANIZATION_ROLE},
        ).scalar_one()
    powers_of_role = ("rolbypassrls", "rolcanlogin", "rolsuper", "rolcreaterole", "rolcreatedb")
    assert [power for power in powers_of_role if getattr(role, power)] == []
    assert memberships == owned == 0
    assert {row.privilege for row in powers} == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert {row.name for row in powers} == {name.replace('"', "").removeprefix("public.") for name in TENANT_TABLES}


QUERIES = (
    "select count(*) from {table} where organization_id = '{theirs}'",
    "select count(*) from {table} where organization_id <> '{mine}' or organization_id is null",
    "select count(*) - 1 from {table}",
    "select sum((select count(*) from {table} as b where b.organization_id <> a.organization_id)) from {table} as a",
    "select count(*) from (select from {table} where organization_id = '{theirs}' for update) as locked",
    "select count(*) - 1 from {table} where true or exists (select from {table})",
    "with others as materialized (select * from {table}) select count(*) - 1 from others",
    "select count(*) filter (where organization_id = '{theirs}') from {table} tablesample system (100)",
)
"""Queries that count the rows of the other organization."""


def test_rows_of_another_organization_are_never_read(database: Database) -> None:
    read = {}
    with database.organization(MINE) as connection:
        for table in TENANT_TABLES:
            found = connection.exec_driver_sql(f"select organization_id from {table}").scalars().all()
            assert (table, found) == (table, [MINE])
            for query in QUERIES:
                statement = query.format(table=table, mine=MINE, theirs=THEIRS)
                read[statement] = connection.exec_driver_sql(statement).scalar_one()
    assert {statement: count for statement, count in read.items() if count} == {}


def test_rows_of_another_organization_are_never_copied_out(database: Database) -> None:
    with database.organization(MINE) as connection:
        for table in TENANT_TABLES:
            for source in (table, f"(select * from {table} where organization_id = '{THEIRS}' or true)"):
                copied = _copy_out(connection, source)
                assert (source, MINE in copied, THEIRS in copied) == (source, True, False)


def test_cheap_function_is_not_called_with_rows_of_another_one(database: Database) -> None:
    """PostgreSQL calls a function that costs nothing before other conditions, but after the policies."""
    seen: list[str] = []
    with database.organization(MINE) as connection:
        driver = cast("psycopg.Connection", connection.connection.driver_connection)
        handler = lambda diagnostic: seen.append(diagnostic.message_primary or "")  # noqa: E731
        driver.add_notice_handler(handler)
        connection.execute(
            sa.text(
                "create function pg_temp.spy(value text) returns boolean language plpgsql cost 0.0000001"
                " as 'begin raise notice ''%'', value; return true; end'"
            )
        )
        for table in TENANT_TABLES:
            connection.exec_driver_sql(f"select count(*) from {table} where pg_temp.spy(organization_id)")
        driver.remove_notice_handler(handler)
        connection.rollback()
    assert seen == [MINE] * len(TENANT_TABLES)


# Statements in the context of MINE: PostgreSQL refuses them, or they find no row of THEIRS.
REFUSED, NOTHING = "refused", 0
ATTEMPTS = {
    "insert": ("{insert_theirs}", REFUSED),
    "insert an existing row": ("{insert_same}", REFUSED),
    "insert on conflict do nothing": ("{insert_same} on conflict do nothing", REFUSED),
    "insert from a select": (
        "insert into {table} ({columns}) select {others}'{theirs}' from {table} where organization_id = '{mine}'",
        REFUSED,
    ),
    "give a row away": ("update {table} set organization_id = '{theirs}'", REFUSED),
    "set the organization to null": ("update {table} set organization_id = null", REFUSED),
    "set the organization to nothing": ("update {table} set organization_id = ''", REFUSED),
    "take a row": ("update {table} set organization_id = '{mine}' where organization_id = '{theirs}'", NOTHING),
    "update": ("update {table} set organization_id = organization_id where organization_id = '{theirs}'", NOTHING),
    "update by a join": (
        (
            "update {table} as target set organization_id = '{mine}' from {table} as other"
            " where target.ctid = other.ctid and other.organization_id = '{theirs}'"
        ),
        NOTHING,
    ),
    "update in a sub-select": (
        (
            "with changed as (update {table} set organization_id = '{mine}' where organization_id <> '{mine}'"
            " returning *) select * from changed"
        ),
        NOTHING,
    ),
    "delete": ("delete from {table} where organization_id = '{theirs}'", NOTHING),
    "delete returning": ("delete from {table} where organization_id <> '{mine}' returning *", NOTHING),
    "delete by a join": (
        "delete from {table} as target using {table} as other where other.organization_id = '{theirs}'",
        NOTHING,
    ),
    "truncate": ("truncate {table}", REFUSED),
    "turn row security off": ("set local row_security = off; select * from {table}", REFUSED),
    "drop the policy": ("drop policy organization_isolation on {table}", REFUSED),
    "drop the restrictive policy": ("drop policy organization_boundary on {table}", REFUSED),
    "disable row level security": ("alter table {table} disable row level security", REFUSED),
    "drop": ("drop table {table}", REFUSED),
    "create a trigger": (
        "create trigger spy before insert on {table} execute function suppress_redundant_updates_trigger()",
        REFUSED,
    ),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_rows_of_another_organization_are_never_written(database: Database, attempt: str) -> None:
    pattern, outcome = ATTEMPTS[attempt]
    outcomes = {}
    with _unchanged_rows_of_theirs(database):
        for table, sample in SAMPLES.items():
            statement = pattern.format(
                table=table,
                mine=MINE,
                theirs=THEIRS,
                insert_theirs=insertion(table, THEIRS, row_of=MINE),
                insert_same=insertion(table, THEIRS),
                columns=", ".join((*sample, "organization_id")),
                others="".join(f"{column}, " for column in sample),
            )
            try:
                with database.organization(MINE) as connection:
                    result = connection.exec_driver_sql(statement)
                    outcomes[table] = len(result.all()) if result.returns_rows else result.rowcount
            except ClinikoPipelineError:
                outcomes[table] = REFUSED
    assert outcomes == dict.fromkeys(TENANT_TABLES, outcome)


def test_deletion_without_condition_deletes_own_rows_only(database: Database) -> None:
    with _unchanged_rows_of_theirs(database), database.organization(MINE) as connection:
        deleted = {table: connection.exec_driver_sql(f"delete from {table}").rowcount for table in SAMPLES}
        assert deleted == dict.fromkeys(TENANT_TABLES, 1)
        left = {table: connection.exec_driver_sql(f"select count(*) from {table}").scalar_one() for table in SAMPLES}
        assert left == dict.fromkeys(TENANT_TABLES, 0)


def test_rows_are_never_copied_in_for_another_organization(database: Database) -> None:
    for table in TENANT_TABLES:
        with database.organization(THEIRS) as connection:
            rows = _copy_out(connection, table)
        with (
            _unchanged_rows_of_theirs(database),
            pytest.raises(ClinikoPipelineError),
            database.organization(MINE) as connection,
        ):
            _copy_in(connection, table, rows)


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
        for _ in range(8):  # the driver prepares a statement at its sixth execution
            for organization in (MINE, THEIRS):
                with database.organization(organization) as connection:
                    rows = connection.execute(query, {"nobody": "x"}).all()
                processes |= {row[0] for row in rows}
                if [row.organization_id for row in rows] != [organization]:
                    wrong.append((table, organization, rows))
    assert wrong == []
    assert len(processes) == 1, "the connection was not shared"


@pytest.mark.parametrize(
    "statement", ["select * from {}", "select count(*) from {}", "delete from {}", "copy {} to stdout"]
)
def test_application_tables_are_closed_in_an_organization_context(database: Database, statement: str) -> None:
    for table in ("public.organizations", "public.api_credentials", "public.contacts"):
        with pytest.raises(DatabaseSetupError, match="permission denied"), database.organization(MINE) as connection:
            connection.exec_driver_sql(statement.format(table))


@pytest.mark.parametrize("context", ["select 1", "set local app.organization_id = ''"], ids=["none", "empty"])
def test_without_a_context_there_are_no_rows(database: Database, context: str) -> None:
    entry = f"set local role {ORGANIZATION_ROLE}; {context}"
    with database.operator() as connection:
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
    """Fail when the block changes, removes or adds a row of the other organization."""

    def rows() -> dict[str, list[object]]:
        with database.organization(THEIRS) as connection:
            return {table: row_versions(connection, table) for table in TENANT_TABLES}

    before = rows()
    assert {len(found) for found in before.values()} == {1}
    yield
    assert rows() == before


def _copy_in(connection: Connection, table: str, rows: str) -> None:
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(f"copy {table} from stdin".encode()) as copy:
        copy.write(rows)


def _copy_out(connection: Connection, source: str) -> str:
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(f"copy {source} to stdout".encode()) as copy:
        return b"".join(bytes(block) for block in copy).decode()
