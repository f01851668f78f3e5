"""Nothing of one organization is read, written or counted in the context of another."""

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError
from cliniko_pipeline.postgres.engine import ORGANIZATION_ROLE, Database
from cliniko_pipeline.postgres.merge import replace_by_rows, upsert
from cliniko_pipeline.postgres.organizations import OPERATORS_TABLES
from cliniko_pipeline.postgres.tables import CONTACT_MAPPING, TENANT_TABLES
from cliniko_pipeline_tests.support.tenants import MINE, SAMPLES, THEIRS, insertion, sow, versions

APPLICATION_TABLES = ("public.organizations", "public.api_credentials", "public.contacts")


@pytest.fixture(scope="module", params=["module_database", "owner_database"], ids=["superuser", "owner"])
def shared(request: pytest.FixtureRequest) -> Database:
    return request.getfixturevalue(request.param)


@pytest.fixture
def database(shared: Database) -> Database:
    """Two organizations' rows in a database whose user is a superuser, and in one whose user is not."""
    sow(shared)
    return shared


@pytest.fixture(params=TENANT_TABLES)
def table(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_table_that_names_organizations_is_a_known_tenant_table_under_forced_row_level_security(
    database: Database,
) -> None:
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
        # One that opens, and one that nothing else can open further.
        assert sorted(policy[:5] for policy in row.policies) == ["(*,f,", "(*,t,"], row.name
        assert [policy.count(context) for policy in row.policies] == [2, 2], row.name


API_TABLES = {"cliniko.api_tokens", "cliniko.api_refusals"}
"""Whose requests were refused is known after an organization was removed, too."""


def test_every_tenant_table_has_a_sample_row_for_these_tests() -> None:
    assert set(SAMPLES) == set(TENANT_TABLES)


def test_the_operators_own_tables_name_no_organization_or_are_known(database: Database) -> None:
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
    # Several organizations may share an API key: a budget belongs to none of them, and names none.
    assert key == "key_digest"


def test_the_organization_role_is_powerless_beyond_the_tenant_tables(database: Database) -> None:
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
    assert not role.rolbypassrls
    assert not role.rolcanlogin
    assert not role.rolsuper
    assert not role.rolcreaterole
    assert not role.rolcreatedb
    assert memberships == owned == 0
    assert {row.privilege for row in powers} == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert {row.name for row in powers} == {name.replace('"', "").removeprefix("public.") for name in TENANT_TABLES}


def test_the_rows_of_another_organization_are_never_read(database: Database, table: str) -> None:
    with database.organization(MINE) as connection:
        rows = connection.execute(sa.text(f"select * from {table}")).mappings().all()
        assert [row["organization_id"] for row in rows] == [MINE]
        for query in (
            f"select count(*) from {table} where organization_id = '{THEIRS}'",
            f"select count(*) from {table} where organization_id <> '{MINE}' or organization_id is null",
            f"select count(*) - 1 from {table}",
            (
                f"select (select count(*) from {table} as other where other.organization_id <> mine.organization_id)"
                f" from {table} as mine"
            ),
            f"select count(*) from (select from {table} where organization_id = '{THEIRS}' for update) as locked",
            f"select count(*) - 1 from {table} where true or exists (select from {table})",
            f"with others as materialized (select * from {table}) select count(*) - 1 from others",
            f"select count(*) filter (where organization_id = '{THEIRS}') from {table} tablesample system (100)",
        ):
            assert connection.execute(sa.text(query)).scalar_one() == 0, query


def test_the_rows_of_another_organization_are_never_copied_out(database: Database, table: str) -> None:
    with database.organization(MINE) as connection:
        for source in (table, f"(select * from {table} where organization_id = '{THEIRS}' or true)"):
            copied = _copied(connection, source)
            assert MINE in copied
            assert THEIRS not in copied


def test_a_function_that_tells_what_it_sees_is_not_shown_another_organizations_rows(
    database: Database, table: str
) -> None:
    told: list[str] = []
    with database.organization(MINE) as connection:
        driver = cast("psycopg.Connection", connection.connection.driver_connection)
        handler = lambda diagnostic: told.append(diagnostic.message_primary or "")  # noqa: E731
        driver.add_notice_handler(handler)
        connection.execute(
            sa.text(
                "create function pg_temp.told(value text) returns boolean language plpgsql cost 0.0000001"
                " as 'begin raise notice ''%'', value; return true; end'"
            )
        )
        connection.execute(sa.text(f"select count(*) from {table} where pg_temp.told(organization_id)"))
        driver.remove_notice_handler(handler)
        connection.rollback()
    assert told == [MINE]


# What is tried in the context of MINE, and whether PostgreSQL refuses it or it finds no row of THEIRS.
REFUSED, NOTHING = "refused", 0
ATTEMPTS = {
    "insert": ("{insert_theirs}", REFUSED),
    "insert a row that is there": ("{insert_same}", REFUSED),
    "insert on conflict do nothing": ("{insert_same} on conflict do nothing", REFUSED),
    "insert from a select": (
        "insert into {table} ({columns}) select {others}'{theirs}' from {table} where organization_id = '{mine}'",
        REFUSED,
    ),
    "give a row away": ("update {table} set organization_id = '{theirs}'", REFUSED),
    "give a row to nobody": ("update {table} set organization_id = null", REFUSED),
    "give a row to the nameless": ("update {table} set organization_id = ''", REFUSED),
    "take a row": ("update {table} set organization_id = '{mine}' where organization_id = '{theirs}'", NOTHING),
    "change": ("update {table} set organization_id = organization_id where organization_id = '{theirs}'", NOTHING),
    "change by a join": (
        (
            "update {table} as target set organization_id = '{mine}' from {table} as other"
            " where target.ctid = other.ctid and other.organization_id = '{theirs}'"
        ),
        NOTHING,
    ),
    "change in a sub-select": (
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
    "look behind the policy": ("set local row_security = off; select * from {table}", REFUSED),
    "drop the policy": ("drop policy organization_isolation on {table}", REFUSED),
    "drop the boundary": ("drop policy organization_boundary on {table}", REFUSED),
    "switch the policies off": ("alter table {table} disable row level security", REFUSED),
    "drop": ("drop table {table}", REFUSED),
    "hang a trigger on it": (
        "create trigger spy before insert on {table} execute function suppress_redundant_updates_trigger()",
        REFUSED,
    ),
}


def test_the_rows_of_another_organization_are_never_written(database: Database, table: str) -> None:
    sample = SAMPLES[table]
    with database.organization(THEIRS) as connection:
        before = versions(connection, table)
    assert len(before) == 1
    for attempt, (pattern, outcome) in ATTEMPTS.items():
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
                rows = len(result.all()) if result.returns_rows else result.rowcount
        except ClinikoPipelineError:
            rows = REFUSED
        assert (attempt, rows) == (attempt, outcome)
        with database.organization(THEIRS) as connection:
            assert versions(connection, table) == before, attempt


def test_deleting_everything_deletes_the_rows_of_one_organization(database: Database, table: str) -> None:
    with database.organization(THEIRS) as connection:
        before = versions(connection, table)
    with database.organization(MINE) as connection:
        assert connection.execute(sa.text(f"delete from {table}")).rowcount == 1
        assert connection.execute(sa.text(f"select count(*) from {table}")).scalar_one() == 0
    with database.organization(THEIRS) as connection:
        assert versions(connection, table) == before


def test_rows_are_never_copied_in_for_another_organization(database: Database, table: str) -> None:
    with database.organization(THEIRS) as connection:
        before = versions(connection, table)
        whole = _copied(connection, table)
        connection.execute(sa.text(f"delete from {table}"))
        connection.rollback()
    with pytest.raises(ClinikoPipelineError), database.organization(MINE) as connection:
        _copy_in(connection, table, whole)
    with database.organization(THEIRS) as connection:
        assert versions(connection, table) == before


def test_a_merge_into_keys_that_another_organization_has_makes_rows_of_its_own(database: Database) -> None:
    mine, theirs = ("2", None, "unmatched", None, None), ("2", None, "ambiguous", "name", 7)
    with database.organization(THEIRS) as connection:
        upsert(connection, CONTACT_MAPPING, [theirs])
    with database.organization(MINE) as connection:
        written = upsert(connection, CONTACT_MAPPING, [mine])
    with database.organization(THEIRS) as connection:
        rows = connection.execute(sa.text("select patient_id, status, candidate_count from cliniko.contact_mapping"))
        assert rows.all() == [("2", "ambiguous", 7)]
    assert (written.inserted, written.updated) == (1, 0)


def test_a_prepared_statement_of_a_shared_connection_follows_the_context(database: Database, table: str) -> None:
    seen = []
    for _ in range(8):  # the driver prepares a statement at its sixth execution
        for organization in (MINE, THEIRS):
            with database.organization(organization) as connection:
                query = f"select pg_backend_pid(), organization_id from {table} where organization_id <> :nobody"
                seen.append((organization, connection.execute(sa.text(query), {"nobody": "x"}).all()))
    assert len({row[0] for _, rows in seen for row in rows}) == 1, "the connection was not shared"
    assert all([row.organization_id for row in rows] == [organization] for organization, rows in seen)


@pytest.mark.parametrize("name", APPLICATION_TABLES)
@pytest.mark.parametrize(
    "statement", ["select * from {}", "select count(*) from {}", "delete from {}", "copy {} to stdout"]
)
def test_the_applications_tables_cannot_be_used_in_an_organizations_context(
    database: Database, name: str, statement: str
) -> None:
    with pytest.raises(DatabaseSetupError, match="permission denied"), database.organization(MINE) as connection:
        connection.exec_driver_sql(statement.format(name))


def test_the_contacts_of_another_organization_are_not_shown(database: Database) -> None:
    for organization in (MINE, THEIRS, "org_without_any", "", "%", "' or true --"):
        with database.organization(organization) as connection:
            names = connection.execute(sa.text("select name from cliniko.organization_contacts()")).scalars().all()
        assert names == ([organization] if organization in {MINE, THEIRS} else [])


def test_the_function_that_reads_contacts_is_not_led_astray_by_objects_of_the_caller(database: Database) -> None:
    with database.organization(MINE) as connection:
        for statement in (
            (
                "create temporary table contacts (id uuid, organization_id text, cliniko_patient_id text, name text,"
                " first_name text, last_name text, email text)"
            ),
            (
                "create function pg_temp.btrim(value text) returns text language plpgsql as"
                " 'begin raise exception ''reached''; end'"
            ),
            (
                "create function pg_temp.spied(value text, other text) returns boolean language plpgsql as"
                " 'begin raise exception ''reached''; end'"
            ),
            "create operator pg_temp.= (leftarg = text, rightarg = text, function = pg_temp.spied)",
            "set local search_path = pg_temp, public, pg_catalog",
        ):
            connection.exec_driver_sql(statement)
        names = connection.execute(sa.text("select name from cliniko.organization_contacts()")).scalars().all()
        assert names == [MINE]
        connection.rollback()


def test_the_persons_of_another_organization_are_not_walked(database: Database) -> None:
    # Each organization's chain of merges leads to an id that only the other has.
    for organization, chain in ((MINE, ("10", "11")), (THEIRS, ("11", "12"))):
        with database.organization(organization) as connection:
            connection.execute(
                sa.text(
                    "insert into cliniko.patients (organization_id, id, merged_into_id, created_at, updated_at)"
                    " values (:organization, :id, :target, now(), now())"
                ),
                {"organization": organization, "id": chain[0], "target": chain[1]},
            )
    for organization, expected in ((MINE, {("1", "1"), ("10", "11")}), (THEIRS, {("2", "2"), ("11", "12")})):
        with database.organization(organization) as connection:
            rows = connection.execute(sa.text("select patient_id, person_id from cliniko.persons()")).all()
        assert {tuple(row) for row in rows} == expected


@pytest.mark.parametrize("context", ["select 1", "set local app.organization_id = ''"], ids=["none", "empty"])
def test_without_a_context_there_are_no_rows(database: Database, table: str, context: str) -> None:
    with database.operator() as connection:
        connection.exec_driver_sql(f"set local role {ORGANIZATION_ROLE}")
        connection.exec_driver_sql(context)
        assert versions(connection, table) == []
        assert connection.exec_driver_sql(f"delete from {table}").rowcount == 0
        assert connection.exec_driver_sql("select * from cliniko.organization_contacts()").all() == []
        assert connection.exec_driver_sql("select * from cliniko.persons()").all() == []
    for organization in (MINE, ""):
        statements = (f"set local role {ORGANIZATION_ROLE}", context, insertion(table, organization, row_of=MINE))
        with pytest.raises(DatabaseSetupError), database.operator() as connection:
            connection.exec_driver_sql("; ".join(statements))


def test_an_owner_that_is_no_superuser_sees_no_tenant_rows_outside_of_a_context(owner_database: Database) -> None:
    sow(owner_database)
    for table in TENANT_TABLES:
        with owner_database.operator() as connection:
            assert versions(connection, table) == []
        with pytest.raises(DatabaseSetupError), owner_database.operator() as connection:
            connection.execute(sa.text(insertion(table, MINE)))


class _InterruptionError(BaseException):
    pass


def _committed(connection: Connection) -> None:
    connection.execute(sa.text("select 1"))


def _rolled_back(connection: Connection) -> None:
    connection.rollback()


def _failed_in_postgres(connection: Connection) -> None:
    connection.execute(sa.text("select 1 / 0"))


def _failed_in_python(_connection: Connection) -> None:
    raise ValueError


def _interrupted(_connection: Connection) -> None:
    raise _InterruptionError


def _interrupted_while_copying(connection: Connection) -> None:
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(b"copy cliniko.patients to stdout"):
        raise _InterruptionError


@pytest.mark.parametrize(
    "ending",
    [_committed, _rolled_back, _failed_in_postgres, _failed_in_python, _interrupted, _interrupted_while_copying],
    ids=lambda ending: ending.__name__.strip("_"),
)
@pytest.mark.parametrize("is_resumable", [False, True])
def test_after_the_transaction_the_pooled_connection_has_neither_role_nor_context_nor_a_row(
    database: Database, ending, is_resumable
) -> None:
    state = sa.text(
        "select pg_backend_pid(), current_user, session_user,"
        " coalesce(current_setting('app.organization_id', true), ''), current_setting('role'),"
        " current_setting('statement_timeout'), current_setting('lock_timeout'),"
        " current_setting('synchronous_commit') as synchronous_commit"
    )
    with database.operator() as connection:
        before = connection.execute(state).one()
    try:
        with database.organization(MINE, is_resumable=is_resumable) as connection:
            inside = connection.execute(state).one()
            upsert(connection, CONTACT_MAPPING, [("9", None, "unmatched", None, None)])
            replace_by_rows(connection, CONTACT_MAPPING, [("9", None, "unmatched", None, None)])
            (kept,) = _staging_tables(connection)
            assert connection.execute(sa.text(f"select count(*) from {kept}")).scalar_one() == 1
            ending(connection)
    except (ClinikoPipelineError, ValueError, _InterruptionError):
        pass
    with database.operator() as connection:
        after = connection.execute(state).one()
        # A staging table may stay with the connection, but nothing in it.
        connection.exec_driver_sql(f"set local role {ORGANIZATION_ROLE}")
        for kept in _staging_tables(connection):
            assert "staging_" in kept
            assert connection.execute(sa.text(f"select count(*) from {kept}")).scalar_one() == 0
    # Nor do rows of one organization get into another's merge.
    with database.organization(THEIRS) as connection:
        assert connection.execute(sa.text("select patient_id from cliniko.contact_mapping")).scalars().all() == ["2"]
        for kept in _staging_tables(connection):
            assert connection.execute(sa.text(f"select count(*) from {kept}")).scalar_one() == 0
    assert inside.synchronous_commit == ("off" if is_resumable else before.synchronous_commit)
    assert inside[1:5] == (ORGANIZATION_ROLE, before[2], MINE, ORGANIZATION_ROLE)
    assert after == before
    assert after[3] == ""


def test_many_threads_of_different_organizations_never_see_each_others_rows(database: Database) -> None:
    organizations = [f"org_{number}" for number in range(6)]

    def work(worker: int) -> set[str]:
        organization = organizations[worker % len(organizations)]
        seen: set[str] = set()
        for turn in range(12):
            with database.organization(organization) as connection:
                upsert(connection, CONTACT_MAPPING, [(f"{worker}-{turn}", None, "unmatched", None, None)])
                seen |= set(
                    connection.execute(sa.text("select organization_id from cliniko.contact_mapping")).scalars()
                )
            try:
                with database.organization(organization) as connection:
                    connection.execute(sa.text("select organization_id from cliniko.contact_mapping for update nowait"))
                    connection.execute(sa.text("select 1 / :zero"), {"zero": turn % 3})
            except ClinikoPipelineError:
                pass
        return seen

    with ThreadPoolExecutor(12) as threads:
        seen = list(threads.map(work, range(12)))
    assert seen == [{organizations[worker % len(organizations)]} for worker in range(12)]
    for organization in organizations:
        with database.organization(organization) as connection:
            count = connection.execute(sa.text("delete from cliniko.contact_mapping")).rowcount
        assert count == 24


def _staging_tables(connection: Connection) -> list[str]:
    return list(
        connection.execute(
            sa.text(
                "select oid::regclass::text from pg_class where relnamespace = pg_my_temp_schema() and relkind = 'r'"
            )
        ).scalars()
    )


def _copy_in(connection: Connection, table: str, rows: str) -> None:
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(f"copy {table} from stdin".encode()) as copy:
        copy.write(rows)


def _copied(connection: Connection, source: str) -> str:
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(f"copy {source} to stdout".encode()) as copy:
        return b"".join(bytes(block) for block in copy).decode()
