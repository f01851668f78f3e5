"""Bringing a database's schema up to date: on all that may be there before, by whoever may do it."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from uuid import UUID, uuid4

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres import engine, frames, organizations, schema
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.tables import TENANT_TABLES, WRITTEN
from cliniko_pipeline_tests.support.databases import administer

# The application's own statement, in its own words.
ACTIVE_PATIENTS = """
create table public.active_patients (
  id bigserial not null, contact_id uuid not null, recent_appointment_count integer not null,
  upcoming_appointment_count integer not null, total_appointment_count integer not null,
  last_appointment_date timestamp, recent_appointments jsonb, upcoming_appointments jsonb,
  search_date_from timestamp, search_date_to timestamp, organization_id text, created_at timestamp,
  updated_at timestamp
)
"""
COUNTS = "recent_appointment_count, upcoming_appointment_count, total_appointment_count"


@pytest.fixture
def empty(empty_database_url: URL):
    database = Database(empty_database_url)
    yield database
    database.close()


@pytest.fixture
def application(empty: Database) -> Database:
    """A database with the application's tables and nothing of the pipeline's."""
    administer(empty.url, sql("application_tables"))
    return empty


def test_an_empty_database_gets_everything_and_a_second_time_nothing(empty: Database) -> None:
    first = schema.migrate(empty, create_application_tables=True)
    objects = _objects(empty)
    second = schema.migrate(empty, create_application_tables=True)
    assert (first.before, first.after, first.changed) == (None, schema.expected_version(), True)
    assert (second.before, second.after, second.changed) == (first.after, first.after, False)
    assert _objects(empty) == objects
    schema.require_current(empty)


def test_without_being_asked_to_the_applications_tables_are_not_made(empty: Database) -> None:
    with pytest.raises(DatabaseSetupError, match=r"public\.organizations is missing"):
        schema.migrate(empty)
    assert _objects(empty) == []


def test_the_application_tables_that_are_made_are_what_the_pipeline_requires(empty: Database) -> None:
    schema.migrate(empty, create_application_tables=True)
    with empty.operator() as connection:
        inspector = sa.inspect(connection)
        for table, columns in schema.APPLICATION_TABLES.items():
            assert set(columns) <= {column["name"] for column in inspector.get_columns(table, "public")}


def test_threads_that_migrate_one_database_at_the_same_time_do_it_once(application: Database) -> None:
    assert sorted(_migrated_at_once([application.url] * 5)) == [False] * 4 + [True]


def test_threads_that_migrate_several_databases_at_the_same_time_do_not_disturb_each_other(
    make_database: Callable[[str], URL],
) -> None:
    urls = [make_database("encoding 'UTF8'") for _ in range(3)]
    for url in urls:
        administer(url, sql("application_tables"))
    assert _migrated_at_once(urls) == [True] * 3


def test_processes_that_migrate_the_first_databases_of_a_server_at_the_same_time_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    # The organizations' role, which belongs to the server, is made by whoever comes first.
    program = (
        "import sys; from sqlalchemy.engine import make_url;"
        "from cliniko_pipeline.postgres import schema; from cliniko_pipeline.postgres.engine import Database;"
        "database = Database(make_url(sys.stdin.readline().strip()));"
        "print('ready', flush=True); sys.stdin.readline();"
        "schema.migrate(database, create_application_tables=True); schema.require_current(database)"
    )
    with EmbeddedServer(tmp_path / "server") as server, ExitStack() as stack:
        administer(server.url, *(f"create database several_{number}" for number in range(3)))
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(3)
        ]
        for number, process in enumerate(processes):
            url = server.url.set(database=f"several_{number}")
            print(url.render_as_string(hide_password=False), file=process.stdin, flush=True)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            print(file=process.stdin, flush=True)
        assert [process.wait(60) for process in processes] == [0, 0, 0]


def test_an_active_patients_with_rows_keeps_them_and_loses_only_repetitions(application: Database) -> None:
    once, twice = UUID(int=1), UUID(int=2)
    rows = [  # contact, organization, recent: the row's number
        (once, "a", 1),
        (twice, "a", 2),
        (twice, "a", 3),
        (twice, "b", 4),
        (once, None, 5),
        (once, None, 6),
        (twice, "a", 7),
    ]
    administer(application.url, ACTIVE_PATIENTS)
    with application.operator() as connection:
        connection.execute(
            sa.text(
                f"insert into public.active_patients (contact_id, organization_id, {COUNTS}) values (:c, :o, :n, 0, :n)"
            ),
            [{"c": contact, "o": organization, "n": number} for contact, organization, number in rows],
        )
    schema.migrate(application)
    with application.operator() as connection:
        kept = connection.execute(
            sa.text("select id, recent_appointment_count from public.active_patients order by id")
        ).all()
    assert [tuple(row) for row in kept] == [(number, number) for number in (1, 2, 4, 5, 6)]
    with application.organization("a") as connection:
        assert connection.execute(sa.text("select id from public.active_patients order by id")).scalars().all() == [
            1,
            2,
        ]
        connection.execute(
            sa.text(
                f"insert into public.active_patients (contact_id, organization_id, {COUNTS})"
                " values (gen_random_uuid(), 'a', 0, 0, 0)"
            )
        )


def test_the_large_active_patients_of_an_older_sync_is_migrated_swiftly(application: Database) -> None:
    administer(
        application.url,
        ACTIVE_PATIENTS,
        f"insert into public.active_patients (contact_id, organization_id, {COUNTS})"
        " select gen_random_uuid(), 'org' || number % 20, 1, 1, 2 from generate_series(1, 20000) as number",
        f"insert into public.active_patients (contact_id, organization_id, {COUNTS})"
        f" select contact_id, organization_id, {COUNTS} from public.active_patients",
    )
    schema.migrate(application)
    with application.operator() as connection:
        assert connection.execute(sa.text("select max(id), count(*) from public.active_patients")).one() == (
            20_000,
            20_000,
        )


@pytest.mark.parametrize("table", schema.APPLICATION_TABLES)
def test_a_missing_table_is_named_and_nothing_is_changed(application: Database, table: str) -> None:
    administer(application.url, f"drop table public.{table}")
    for action in (schema.migrate, schema.require_current):
        with pytest.raises(DatabaseSetupError) as raised:
            action(application)
        _is_one_line(raised.value, f"public.{table} is missing")
    assert not any(name.startswith("cliniko") for name in _objects(application))


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column) for table, columns in schema.APPLICATION_TABLES.items() for column in columns],
)
def test_a_missing_column_is_named_and_nothing_is_changed(application: Database, table: str, column: str) -> None:
    administer(application.url, f"alter table public.{table} drop column {column} cascade")
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(application)
    _is_one_line(raised.value, f"public.{table} lacks {column}:")
    assert not any(name.startswith("cliniko") for name in _objects(application))


def test_an_active_patients_that_lacks_a_column_is_refused(application: Database) -> None:
    administer(application.url, ACTIVE_PATIENTS, "alter table public.active_patients drop column search_date_to")
    with pytest.raises(DatabaseSetupError, match=r"public\.active_patients lacks search_date_to:"):
        schema.migrate(application)


def test_an_active_patients_that_is_no_table_is_refused(application: Database) -> None:
    administer(
        application.url,
        ACTIVE_PATIENTS,
        "alter table public.active_patients rename to kept",
        "create view public.active_patients as select * from public.kept",
    )
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(application)
    _is_one_line(raised.value, "public.active_patients", "table")
    assert not any(name.startswith("cliniko") for name in _objects(application))


@pytest.mark.parametrize(
    "changes",
    [
        ["alter table {0} drop column first_name, drop column last_name"],
        [
            "alter table {0} drop column first_name, drop column last_name",
            "alter table {0} alter name type varchar(99)",
        ],
        ["alter table {0} drop column last_name"],
        ["alter table {0} add extra jsonb default '{{}}', add \"odd Name\" integer"],
        [f"alter table {{0}} alter {column} type varchar(99)" for column in ("name", "email", "cliniko_patient_id")],
        ["update {0} set cliniko_patient_id = null", "alter table {0} alter cliniko_patient_id type bigint using 7"],
        ["alter table {0} rename to stored", "create view {0} as select * from public.stored"],
        ["alter table {0} rename to stored", "create materialized view {0} as select * from public.stored"],
        ["alter table {0} enable row level security"],
    ],
    ids=[
        "whole names only",
        "whole names of another type",
        "no last name",
        "extra columns",
        "other text types",
        "numeric patient ids",
        "view",
        "materialized view",
        "policies of the application's",
    ],
)
def test_contacts_of_other_shapes_are_read(application: Database, changes: list[str]) -> None:
    administer(
        application.url,
        "insert into public.contacts (organization_id, cliniko_patient_id, name, first_name, last_name, email)"
        " values ('a', '7', 'Ann Lee', null, null, 'ann@example.com'), ('b', '7', 'Bo', null, null, null),"
        " ('a', '7', ' ', 'Cy', 'Ray', null)",
        *(change.format("public.contacts") for change in changes),
    )
    schema.migrate(application)
    whole = any("drop column" in change for change in changes)
    with application.organization("a") as connection:
        rows = connection.execute(
            sa.text("select cliniko_patient_id, name, email from cliniko.organization_contacts() order by email")
        ).all()
    assert rows == [("7", "Ann Lee", "ann@example.com"), ("7", None if whole else "Cy Ray", None)]


def test_a_changed_function_is_made_anew(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema.migrate(empty, create_application_tables=True).after
    administer(
        empty.url,
        "create or replace function cliniko.email_key(email text) returns text language sql return 'tampered'",
    )
    changed = {"functions/email_key": sql("functions/email_key") + "-- another version\n"}
    monkeypatch.setattr(schema, "sql", lambda name: changed.get(name) or sql(name))
    with pytest.raises(DatabaseSetupError) as raised:
        schema.require_current(empty)
    _is_one_line(raised.value, "another version", "cliniko-pipeline migrate")
    migration = schema.migrate(empty)
    assert (migration.before, migration.changed) == (before, True)
    assert migration.after != before
    with empty.organization("a") as connection:
        assert connection.execute(sa.text("select cliniko.email_key('A@B')")).scalar_one() == "a@b"


POWERS = {
    "superuser": ("is a superuser", "alter role {role} superuser"),
    "bypass": ("bypasses row-level security", "alter role {role} bypassrls"),
    "login": ("may log in", "alter role {role} login"),
    "member": ("is a member of pg_monitor, pg_read_all_data", "grant pg_read_all_data, pg_monitor to {role}"),
    "all": ("may log in and is a member of pg_monitor", "alter role {role} login; grant pg_monitor to {role}"),
}


@pytest.mark.parametrize(("words", "given"), POWERS.values(), ids=POWERS)
def test_a_role_of_the_organizations_that_has_powers_is_refused_until_they_are_taken_away(
    fresh_server_url: URL, owner_database: Database, words: str, given: str
) -> None:
    administer(fresh_server_url, *given.format(role=engine.ORGANIZATION_ROLE).split(";"))
    mend = ""
    try:
        for action in (schema.migrate, schema.require_current):
            with pytest.raises(DatabaseSetupError) as raised:
                action(owner_database)
            _is_one_line(raised.value, engine.ORGANIZATION_ROLE, words)
            mend = str(raised.value).split("`")[1]
    finally:
        administer(fresh_server_url, *mend.split(";"))
    schema.require_current(owner_database)
    assert not schema.migrate(owner_database).changed


def test_isolation_that_was_lost_is_made_anew_and_nothing_else_is_changed(application: Database) -> None:
    schema.migrate(application)
    objects = _objects(application)
    for loss in (
        "alter table cliniko.patients disable row level security",
        "alter table public.active_patients no force row level security",
        "drop policy organization_isolation on cliniko.crawls",
        "drop policy organization_boundary on public.active_patients",
    ):
        administer(application.url, loss)
        assert schema.migrate(application).changed
        assert _objects(application) == objects
        assert not schema.migrate(application).changed


def test_a_change_of_the_policies_reaches_tables_of_the_operators_own(
    application: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.migrate(application)
    frames.write(application, "a", "Odd schema", "odd table", pd.DataFrame({"n": [1]}))
    changed = sql("isolate") + "; comment on table {table} is 'x'"
    monkeypatch.setattr(schema, "sql", lambda name: changed if name == "isolate" else sql(name))
    assert schema.migrate(application).changed
    with application.operator() as connection:
        commented = connection.execute(
            sa.text("select count(*) from pg_description where objsubid = 0 and description = 'x'")
        ).scalar_one()
    assert commented == len(TENANT_TABLES) + 1


def test_contacts_whose_id_is_no_uuid_are_refused(application: Database) -> None:
    administer(
        application.url,
        "alter table public.contacts alter id drop default, alter id type text using id::text",
    )
    for action in (schema.migrate, schema.require_current):
        with pytest.raises(DatabaseSetupError) as raised:
            action(application)
        _is_one_line(raised.value, "id of public.contacts is of type text", "uuid")
    assert not any(name.startswith("cliniko") for name in _objects(application))


NO_TARGET = {
    "none": [],
    "another order": ["create unique index on public.api_credentials (service_name, organization_id)"],
    "partial": ["create unique index on public.api_credentials (organization_id, service_name) where is_active"],
    "not unique": ["create index on public.api_credentials (organization_id, service_name)"],
    "more": ["create unique index on public.api_credentials (organization_id, service_name, id)"],
    "of expressions": ["create unique index on public.api_credentials (lower(organization_id), service_name)"],
}


@pytest.mark.parametrize(("given", "enough"), [(name, name == "another order") for name in NO_TARGET], ids=NO_TARGET)
def test_credentials_that_nothing_keeps_unique_are_told_with_what_to_do(
    application: Database, given: str, enough: bool
) -> None:
    administer(
        application.url,
        "alter table public.api_credentials drop constraint api_credentials_organization_id_service_name_key",
        *NO_TARGET[given],
    )
    if not enough:
        for action in (schema.migrate, schema.require_current):
            with pytest.raises(DatabaseSetupError) as raised:
                action(application)
            _is_one_line(raised.value, "public.api_credentials")
        administer(application.url, str(raised.value).split("`")[1])
    schema.migrate(application)
    with application.operator() as connection:
        for name in ("First", "Second"):
            organizations.save(connection, "a", name, {"encrypted_data": name}, validated=False)
        assert organizations.all_stored_credentials(connection) == {"a": {"encrypted_data": "Second"}}


def test_organizations_of_the_applications_may_have_uuids(application: Database) -> None:
    mine, theirs = str(uuid4()), str(uuid4())
    administer(
        application.url,
        *(
            f"alter table public.{table} alter {column} type uuid using {column}::uuid"
            for table, column in (
                ("organizations", "id"),
                ("api_credentials", "organization_id"),
                ("contacts", "organization_id"),
            )
        ),
    )
    schema.migrate(application)
    with application.operator() as connection:
        for each in (mine, theirs):
            organizations.save(connection, each, f"Clinic {each}", {"encrypted_data": each}, validated=False)
            connection.execute(
                sa.text("insert into public.contacts (organization_id, name) values (:id, :name)"),
                {"id": each, "name": each},
            )
        found = organizations.organizations(connection)
        assert {each.id: each.name for each in found} == {each: f"Clinic {each}" for each in (mine, theirs)}
        assert organizations.stored_credentials(connection, mine) == {"encrypted_data": mine}
        assert set(organizations.all_stored_credentials(connection)) == {mine, theirs}
    for context, names in ((mine, [mine]), (theirs, [theirs]), ("surf-rehab", []), ("", [])):
        with application.organization(context) as connection:
            seen = connection.execute(sa.text("select name from cliniko.organization_contacts()")).scalars().all()
        assert seen == names
    organizations.remove(application, mine)
    with application.operator() as connection:
        assert [each.id for each in organizations.organizations(connection)] == [theirs]


def test_the_schema_of_a_newer_version_is_left_alone(application: Database) -> None:
    schema.migrate(application)
    administer(application.url, "update cliniko.schema_version set version_num = '0099'")
    objects = _objects(application)
    for action in (schema.migrate, schema.require_current):
        with pytest.raises(DatabaseSetupError) as raised:
            action(application)
        _is_one_line(raised.value, "newer version of the pipeline (0099)", "install")
    assert _objects(application) == objects


@pytest.mark.parametrize("holder", ["select count(*)", "delete"])
def test_a_table_in_use_is_waited_for_a_moment_only_and_nothing_is_changed(
    application: Database, monkeypatch: pytest.MonkeyPatch, holder: str
) -> None:
    assert schema.TABLE_LOCK_TIMEOUT_SECONDS == 5
    monkeypatch.setattr(schema, "TABLE_LOCK_TIMEOUT_SECONDS", 0.1)
    administer(application.url, ACTIVE_PATIENTS)
    before = _objects(application)
    with application.operator() as user:
        user.execute(sa.text(f"{holder} from public.active_patients"))
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailableError) as raised:
            schema.migrate(application)
        assert time.monotonic() - started < 4
    _is_one_line(raised.value, "public.active_patients", "nothing was changed", "Try again")
    assert _objects(application) == before
    assert schema.migrate(application).changed


def test_a_migration_waits_for_another_one_for_longer_than_for_a_table(
    application: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "TABLE_LOCK_TIMEOUT_SECONDS", 0.1)
    with ThreadPoolExecutor(1) as thread:
        with application.operator() as connection:
            key = {"key": engine.advisory_key("cliniko_pipeline.migrate")}
            connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), key)
            second = thread.submit(schema.migrate, application)
            with pytest.raises(TimeoutError):
                second.result(0.5)
        assert second.result(30).changed


def test_who_migrates_is_told_that_readers_of_the_rows_that_were_there_must_now_say_whose(
    application: Database,
) -> None:
    administer(application.url, ACTIVE_PATIENTS)
    assert not schema.migrate(application).closed_to_readers
    administer(
        application.url,
        "drop schema cliniko cascade",
        "alter table public.active_patients disable row level security",
        f"insert into public.active_patients (contact_id, organization_id, {COUNTS})"
        " values (gen_random_uuid(), 'a', 1, 1, 2)",
    )
    assert schema.migrate(application).closed_to_readers
    administer(application.url, "drop schema cliniko cascade")
    assert not schema.migrate(application).closed_to_readers


def test_a_user_that_cannot_enter_a_context_is_told_what_to_grant(
    fresh_server_url: URL, owner_database: Database
) -> None:
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
        with pytest.raises(DatabaseSetupError) as raised:
            schema.require_isolation(database)
        _is_one_line(raised.value, "may not switch")
        administer(fresh_server_url, str(raised.value).split("`")[1])
        schema.require_isolation(database)
    finally:
        database.close()
        target = fresh_server_url.set(database=owner_database.url.database)
        administer(target, f"drop owned by {quoted}", f"drop role {quoted}")


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_a_table_that_row_level_security_does_not_close_is_named(owner_database: Database, table: str) -> None:
    for opened, closed in (
        ("disable row level security", "enable row level security"),
        ("no force row level security", "force row level security"),
    ):
        administer(owner_database.url, f"alter table {table} {opened}")
        try:
            with pytest.raises(DatabaseSetupError) as raised:
                schema.require_isolation(owner_database)
            _is_one_line(raised.value, table.replace('"', "").removeprefix("public."), "cliniko-pipeline migrate")
        finally:
            administer(owner_database.url, f"alter table {table} {closed}")
    schema.require_isolation(owner_database)


def test_every_function_is_applied_and_only_the_organization_role_may_use_it(owner_database: Database) -> None:
    with owner_database.operator() as connection:
        rows = connection.execute(
            sa.text(
                "select proname, has_function_privilege('public', oid, 'execute') as public,"
                f" has_function_privilege('{engine.ORGANIZATION_ROLE}', oid, 'execute') as organization"
                " from pg_proc where pronamespace = 'cliniko'::regnamespace"
            )
        ).all()
    assert sorted(row.proname for row in rows) == sorted(schema.FUNCTIONS)
    assert all(row.organization and not row.public for row in rows)


def test_a_database_without_the_schema_is_told_to_be_migrated(application: Database) -> None:
    with pytest.raises(DatabaseSetupError) as raised:
        schema.require_current(application)
    _is_one_line(raised.value, "has no pipeline schema yet", "cliniko-pipeline migrate")


def test_a_schema_that_was_dropped_is_made_again(application: Database) -> None:
    schema.migrate(application)
    administer(application.url, "drop schema cliniko cascade")
    assert schema.migrate(application).changed
    schema.require_current(application)


@pytest.mark.parametrize(("version", "accepted"), [(130_021, False), (140_000, True), (180_001, True)])
def test_a_server_that_is_too_old_is_refused(
    application: Database, monkeypatch: pytest.MonkeyPatch, version: int, accepted: bool
) -> None:
    # No old server is at hand: only what this one says of itself is changed.
    real = sa.engine.Connection.execute

    def execute(self, statement, *arguments, **options):
        if str(statement) == "show server_version_num":
            return SimpleNamespace(scalar_one=lambda: str(version))
        return real(self, statement, *arguments, **options)

    monkeypatch.setattr(sa.engine.Connection, "execute", execute)
    if accepted:
        application.require_supported_version()
        return
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(application)
    _is_one_line(raised.value, "PostgreSQL 13 is too old", "version 14 or later")
    assert not any(name.startswith("cliniko") for name in _objects(application))


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_in_another_encoding_is_refused(make_database: Callable[[str], URL], encoding: str) -> None:
    database = Database(make_database(f"encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"))
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(database, create_application_tables=True)
    _is_one_line(raised.value, encoding, "UTF8", "createdb")
    assert _objects(database) == []
    database.close()


@pytest.mark.parametrize(
    "grants",
    [
        [],
        ["grant create on database {database} to {user}"],
        ["grant create on database {database} to {user}", "alter role {user} createrole"],
        [
            "grant create on database {database} to {user}",
            "grant create on schema public to {user}",
            "grant {role} to {user}",
            "revoke all on public.contacts from {user}",
            "alter table public.active_patients owner to {other}",
        ],
    ],
    ids=["nothing", "schemas only", "no role of another's", "somebody else's active_patients"],
)
def test_a_user_without_the_privileges_is_told_so_in_one_line_and_nothing_is_changed(
    application: Database, grants: list[str], template: str
) -> None:
    user = f"weak_{uuid4().hex}"
    administer(
        application.url,
        ACTIVE_PATIENTS,
        f"create role {user} login password 'weak'",
        *(
            grant.format(
                user=user,
                database=application.url.database,
                role=engine.ORGANIZATION_ROLE,
                other=application.url.username,
            )
            for grant in grants
        ),
    )
    database = Database(application.url.set(username=user, password="weak"))
    try:
        before = _objects(application)
        with pytest.raises(DatabaseSetupError) as raised:
            schema.migrate(database)
        _is_one_line(raised.value, "lacks a privilege", "cliniko-pipeline migrate")
        assert _objects(application) == before
    finally:
        database.close()
        administer(application.url, f"drop owned by {user}", f"drop role {user}")


def test_the_columns_of_every_written_table_are_the_catalogs(owner_database: Database) -> None:
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


def test_the_pipelines_active_patients_has_the_columns_and_types_that_the_application_specified(
    application: Database, owner_database: Database
) -> None:
    administer(application.url, ACTIVE_PATIENTS)
    described = []
    for database in (application, owner_database):
        with database.operator() as connection:
            columns = sa.inspect(connection).get_columns("active_patients", "public")
        described.append([(column["name"], str(column["type"]), column["nullable"]) for column in columns])
    assert described[0] == described[1]


def _migrated_at_once(urls: list[URL]) -> list[bool]:
    start = Barrier(len(urls))

    def migrate(url: URL) -> bool:
        database = Database(url)
        try:
            start.wait(10)
            return schema.migrate(database).changed
        finally:
            database.close()

    with ThreadPoolExecutor(len(urls)) as threads:
        return list(threads.map(migrate, urls))


def _objects(database: Database) -> list[str]:
    """All that stands in the database, and what was done to it."""
    with database.operator() as connection:
        return list(
            connection.execute(
                sa.text(
                    """
                    select concat(nspname, '.', relname, ' ', relkind, relrowsecurity, relforcerowsecurity, relacl)
                    from pg_class inner join pg_namespace as schema on schema.oid = relnamespace
                    where nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
                    union all
                    select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'
                        and nspname <> 'public'
                    union all
                    select nspname || '.' || concat(proname, proacl, prosrc, proowner)
                    from pg_proc inner join pg_namespace as schema on schema.oid = pronamespace
                    where nspname in ('cliniko', 'public')
                    union all
                    select polname from pg_policy
                    order by 1
                    """
                )
            ).scalars()
        )


def _is_one_line(error: Exception, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert all(part in text for part in parts), text
