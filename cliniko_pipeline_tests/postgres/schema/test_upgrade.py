"""Tests of the requirements on the application's tables, the roles and the server."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from types import SimpleNamespace
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.application_tables import APPLICATION_TABLES
from cliniko_pipeline.postgres.tables import TENANT_TABLES, WRITTEN
from cliniko_pipeline_tests.support.databases import administer, organization_role_of
from cliniko_pipeline_tests.support.schemas import (
    ACTIVE_PATIENTS_TABLE,
    assert_one_line,
    has_pipeline_schema,
)

Action = Callable[[Database], object]
ACTIONS: tuple[Action, ...] = (schema.migrate, schema.require_current)


@pytest.fixture
def application(empty_database_url: URL) -> Iterator[Database]:
    """Yield a database that has only the application's tables."""
    administer(empty_database_url, sql("schema/application_tables"))
    database = Database(empty_database_url)
    yield database
    database.close()


def assert_refused(database: Database, *parts: str, actions: Sequence[Action] = ACTIONS) -> str:
    """Assert that every action fails with one line that contains the parts. Return the line."""
    message = ""
    for action in actions:
        with pytest.raises(DatabaseSetupError) as raised:
            action(database)
        assert_one_line(raised.value, *parts)
        message = str(raised.value)
    return message


# The application's tables. ------------------------------------------------------------------------------------------


def test_missing_table_or_column_is_named(application: Database) -> None:
    for table, columns in APPLICATION_TABLES.items():
        renaming = "alter table public.{} rename to {}"
        administer(application.url, renaming.format(table, "renamed"))
        assert_refused(application, f"public.{table} is missing")
        administer(application.url, renaming.format("renamed", table))
        for column in columns:
            renaming = f"alter table public.{table} rename column {{}} to {{}}"
            administer(application.url, renaming.format(column, "renamed"))
            assert_refused(application, f"public.{table} lacks {column}:")
            administer(application.url, renaming.format("renamed", column))
    assert not has_pipeline_schema(application)
    assert_refused(application, "has no pipeline schema yet", "cliniko-pipeline migrate", actions=ACTIONS[1:])


def test_active_patients_of_another_shape_is_refused(application: Database) -> None:
    administer(
        application.url,
        ACTIVE_PATIENTS_TABLE,
        "alter table public.active_patients rename column search_date_to to renamed",
    )
    assert_refused(application, "public.active_patients lacks search_date_to:")
    administer(
        application.url,
        "alter table public.active_patients rename column renamed to search_date_to",
        "alter table public.active_patients rename to stored",
        "create view public.active_patients as select * from public.stored",
    )
    assert_refused(application, "public.active_patients", "table")
    assert not has_pipeline_schema(application)


def test_contacts_whose_id_is_no_uuid_are_refused(application: Database) -> None:
    administer(
        application.url,
        "alter table public.contacts alter id drop default, alter id type text using id::text",
    )
    assert_refused(application, "id of public.contacts is of type text", "uuid")
    assert not has_pipeline_schema(application)


CONTACT_SHAPES = {
    "name only, of another type": [
        "alter table {0} drop column first_name, drop column last_name",
        "alter table {0} alter name type varchar(99)",
    ],
    "extra columns": ["alter table {0} add extra jsonb default '{{}}', add \"odd Name\" integer"],
    "numeric patient ids": [
        "update {0} set cliniko_patient_id = null",
        "alter table {0} alter cliniko_patient_id type bigint using 7",
    ],
    "materialized view": [
        "alter table {0} rename to stored",
        "create materialized view {0} as select * from public.stored",
    ],
    "own policies": ["alter table {0} enable row level security"],
}


@pytest.mark.parametrize("shape", CONTACT_SHAPES)
def test_contacts_of_other_shapes_are_read(application: Database, shape: str) -> None:
    administer(
        application.url,
        "insert into public.contacts (organization_id, cliniko_patient_id, name, first_name, last_name, email)"
        " values ('a', '7', 'Ann Lee', null, null, 'ann@example.com'), ('b', '7', 'Bo', null, null, null),"
        " ('a', '7', ' ', 'Cy', 'Ray', null)",
        *(change.format("public.contacts") for change in CONTACT_SHAPES[shape]),
    )
    schema.migrate(application)
    has_parts = "drop column" not in CONTACT_SHAPES[shape][0]
    with application.organization("a") as connection:
        rows = connection.execute(
            sa.text("select cliniko_patient_id, name, email from cliniko.organization_contacts() order by email")
        ).all()
    assert rows == [("7", "Ann Lee", "ann@example.com"), ("7", "Cy Ray" if has_parts else None, None)]


UNFIT_INDEXES = {
    "none": "select",
    "partial": "create unique index other on public.api_credentials (organization_id, service_name) where is_active",
    "not unique": "create index other on public.api_credentials (organization_id, service_name)",
    "more columns": "create unique index other on public.api_credentials (organization_id, service_name, id)",
    "expressions": "create unique index other on public.api_credentials (lower(organization_id), service_name)",
}


def test_credentials_without_a_unique_index_are_refused(database: Database) -> None:
    """The command in the message creates the index. The columns may be in any order."""
    constraint = "api_credentials_organization_id_service_name_key"
    administer(database.url, f"alter table public.api_credentials drop constraint {constraint}")
    message = ""
    for index in UNFIT_INDEXES.values():
        administer(database.url, index)
        message = assert_refused(database, "public.api_credentials")
        administer(database.url, "drop index if exists public.other")
    for index in (
        "create unique index other on public.api_credentials (service_name, organization_id)",
        message.split("`")[1],
    ):
        administer(database.url, "drop index if exists public.other", index)
        schema.require_current(database)
        with database.operator() as connection:
            for name in ("First", "Second"):
                organizations.save(connection, "a", name, {"encrypted_data": name}, validated=False)
            assert organizations.all_stored_credentials(connection) == {"a": {"encrypted_data": "Second"}}


def test_organization_ids_may_be_uuids(application: Database) -> None:
    mine, theirs = str(uuid4()), str(uuid4())
    administer(
        application.url,
        "alter table public.organizations alter id type uuid using id::uuid",
        "alter table public.api_credentials alter organization_id type uuid using organization_id::uuid",
        "alter table public.contacts alter organization_id type uuid using organization_id::uuid",
        f"insert into public.contacts (organization_id, name) values ('{mine}', 'mine'), ('{theirs}', 'theirs')",
    )
    schema.migrate(application)
    with application.operator() as connection:
        for each in (mine, theirs):
            organizations.save(connection, each, f"Clinic {each}", {"encrypted_data": each}, validated=False)
        found = organizations.organizations(connection)
        assert {each.id: each.name for each in found} == {each: f"Clinic {each}" for each in (mine, theirs)}
        assert organizations.stored_credentials(connection, mine) == {"encrypted_data": mine}
        assert set(organizations.all_stored_credentials(connection)) == {mine, theirs}
    for context, names in ((mine, ["mine"]), (theirs, ["theirs"]), ("surf-rehab", []), ("", [])):
        with application.organization(context) as connection:
            seen = connection.execute(sa.text("select name from cliniko.organization_contacts()")).scalars().all()
        assert seen == names
    organizations.remove(application, mine)
    with application.operator() as connection:
        assert [each.id for each in organizations.organizations(connection)] == [theirs]


def test_migrated_tables_have_the_declared_columns(owner_database: Database) -> None:
    with owner_database.operator() as connection:
        inspector = sa.inspect(connection)
        for table in WRITTEN:
            columns = {column["name"]: column for column in inspector.get_columns(table.name, table.schema)}
            own = {"id"} if table.name == "active_patients" else set()
            declared = (*table.key, *table.columns, *table.stamps, *(["vanished_at"] if table.vanishes else []))
            assert len(declared) == len(set(declared)), table.name
            assert set(columns) == {*declared, "organization_id"} | own, table.name
            unique = {tuple(index["column_names"]) for index in inspector.get_indexes(table.name, table.schema)}
            unique.add(tuple(inspector.get_pk_constraint(table.name, table.schema)["constrained_columns"]))
            assert ("organization_id", *table.key) in unique, table.name


def test_active_patients_has_the_columns_of_the_application(application: Database, owner_database: Database) -> None:
    administer(application.url, ACTIVE_PATIENTS_TABLE)
    described = []
    for database in (application, owner_database):
        with database.operator() as connection:
            columns = sa.inspect(connection).get_columns("active_patients", "public")
        described.append([(column["name"], str(column["type"]), column["nullable"]) for column in columns])
    assert described[0] == described[1]


# Roles and privileges. ----------------------------------------------------------------------------------------------


POWERS = {
    "superuser": ("is a superuser", "alter role {role} superuser"),
    "bypass": ("bypasses row-level security", "alter role {role} bypassrls"),
    "login and member": (
        "may log in and is a member of pg_monitor, pg_read_all_data",
        "alter role {role} login; grant pg_read_all_data, pg_monitor to {role}",
    ),
}


@pytest.mark.parametrize(("words", "given"), POWERS.values(), ids=POWERS)
def test_organization_role_with_powers_is_refused(
    fresh_server_url: URL, owner_database: Database, words: str, given: str
) -> None:
    role = organization_role_of(owner_database.url)
    administer(fresh_server_url, *given.format(role=role).split(";"))
    message = assert_refused(owner_database, role, words)
    administer(fresh_server_url, *message.split("`")[1].split(";"))
    schema.require_current(owner_database)
    assert not schema.migrate(owner_database).changed


def test_user_without_the_organization_role_is_refused(fresh_server_url: URL, owner_database: Database) -> None:
    schema.require_isolation(owner_database)
    user = f'odd "{uuid4().hex}'
    quoted = '"' + user.replace('"', '""') + '"'
    administer(
        fresh_server_url.set(database=owner_database.url.database),
        f"create role {quoted} login password 'odd'",
        f"grant usage on schema cliniko to {quoted}",
    )
    database = Database(owner_database.url.set(username=user, password="odd"))
    try:
        message = assert_refused(database, "may not switch", actions=[schema.require_isolation])
        administer(fresh_server_url, message.split("`")[1])
        schema.require_isolation(database)
    finally:
        database.close()
        target = fresh_server_url.set(database=owner_database.url.database)
        administer(target, f"drop owned by {quoted}", f"drop role {quoted}")


def test_table_without_row_level_security_is_named(owner_database: Database) -> None:
    for table in TENANT_TABLES:
        for opened, closed in (
            ("disable row level security", "enable row level security"),
            ("no force row level security", "force row level security"),
        ):
            administer(owner_database.url, f"alter table {table} {opened}")
            name = table.replace('"', "").removeprefix("public.")
            try:
                assert_refused(owner_database, name, "cliniko-pipeline migrate", actions=[schema.require_isolation])
            finally:
                administer(owner_database.url, f"alter table {table} {closed}")
    schema.require_isolation(owner_database)


def test_only_the_organization_role_may_use_the_functions(owner_database: Database) -> None:
    with owner_database.operator() as connection:
        rows = connection.execute(
            sa.text(
                "select proname, has_function_privilege('public', oid, 'execute') as public,"
                f" has_function_privilege('{organization_role_of(owner_database.url)}', oid, 'execute') as organization"
                " from pg_proc where pronamespace = 'cliniko'::regnamespace"
            )
        ).all()
    assert sorted(row.proname for row in rows) == sorted(PurePosixPath(file).name for file in schema.FUNCTIONS)
    assert all(row.organization and not row.public for row in rows)


# The server. --------------------------------------------------------------------------------------------------------


def test_old_server_is_refused(application: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real, version = sa.engine.Connection.execute, "140000"

    def execute(self, statement, *arguments, **options):
        if str(statement) == "show server_version_num":
            return SimpleNamespace(scalar_one=lambda: version)
        return real(self, statement, *arguments, **options)

    monkeypatch.setattr(sa.engine.Connection, "execute", execute)
    application.require_supported_version()
    version = "130021"
    assert_refused(application, "PostgreSQL 13 is too old", "version 14 or later", actions=ACTIONS[:1])
    assert not has_pipeline_schema(application)


def test_database_of_another_encoding_is_refused(make_database: Callable[[str], URL]) -> None:
    database = Database(make_database("encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'"))
    assert_refused(database, "SQL_ASCII", "UTF8", "createdb", actions=ACTIONS[:1])
    assert not has_pipeline_schema(database)
    database.close()
