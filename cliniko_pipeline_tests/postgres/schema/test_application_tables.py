"""Tests of variants of the application's tables, which a sync accepts or which are reported before a sync fails."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.reads import active_patients
from cliniko_pipeline.postgres.reads.active_patients import Filters, Order
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.rehearsal import rehearse, rehearse_addition, require_rehearsed
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS
from cliniko_pipeline.postgres.writing import merge
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.schemas import (
    ACTIVE_PATIENTS_TABLE,
    assert_one_line,
    has_pipeline_schema,
    schema_objects,
)

USERS = "create table public.users (id {0} primary key)"
REFERENCE = "alter table public.api_credentials add constraint made_by foreign key (created_by) references public.users"


@pytest.fixture
def database_with_contact(database: Database) -> Database:
    administer(
        database.url,
        "insert into public.organizations values ('a', 'A'), ('b', 'B')",
        f"insert into public.contacts (id, organization_id, name) values ('{UUID(int=1)}', 'a', 'One')",
    )
    return database


@pytest.mark.parametrize("kind", ["text", "uuid", "integer"])
def test_credentials_have_no_creator_where_that_is_a_user(database: Database, kind: str) -> None:
    administer(
        database.url,
        f"alter table public.api_credentials drop created_by, add created_by {kind}",
        USERS.format(kind),
        REFERENCE,
    )
    with database.operator() as connection:
        organizations.save(connection, "a", "A", {"encrypted_data": "-"}, validated=False)
        creators = connection.execute(sa.text("select created_by from public.api_credentials")).scalars()
        assert list(creators) == [None]


def test_credentials_that_cannot_be_stored_are_named_before_the_key(database: Database) -> None:
    administer(
        database.url,
        USERS.format("text"),
        REFERENCE,
        "alter table public.api_credentials alter created_by set not null",
    )
    with pytest.raises(DatabaseSetupError) as raised:
        rehearse_addition(database, "a", "A")
    assert_one_line(raised.value, "'a'", "created_by", "public.api_credentials", "drop not null")
    with database.operator() as connection:
        assert organizations.organizations(connection) == []
        assert connection.execute(sa.text("select count(*) from public.organizations")).scalar_one() == 0


def test_obligatory_column_is_named(empty_database_url: URL) -> None:
    obligation = "alter table public.active_patients add branch text not null"
    administer(empty_database_url, sql("schema/application_tables"), ACTIVE_PATIENTS_TABLE, obligation)
    database = Database(empty_database_url)
    try:
        with pytest.raises(DatabaseSetupError) as raised:
            schema.migrate(database)
        assert_one_line(raised.value, "public.active_patients", "branch", "set default")
        assert not has_pipeline_schema(database)
        administer(empty_database_url, "alter table public.active_patients alter branch set default 'main'")
        assert schema.migrate(database).changed
    finally:
        database.close()


@pytest.mark.parametrize("organization", ["null", "'b'"])
def test_rows_that_no_organization_sees_are_counted(database_with_contact: Database, organization: str) -> None:
    database = database_with_contact
    columns = (
        "contact_id, organization_id, recent_appointment_count, upcoming_appointment_count, total_appointment_count"
    )
    administer(
        database.url,
        "create unique index one_a_contact on public.active_patients (contact_id)",
        f"insert into public.active_patients ({columns}) values ('{UUID(int=1)}', {organization}, 1, 1, 2)",
    )
    with pytest.raises(DatabaseSetupError) as raised:
        require_rehearsed(database)
    message = str(raised.value)
    assert all(words in message for words in ("1 rows of public.active_patients", "one_a_contact", "BYPASSRLS"))
    administer(database.url, message.split("`")[1])
    assert rehearse(database) == []


LIVED_WITH = {
    "a foreign key with cascade": [
        "alter table public.contacts add unique (id, organization_id)",
        "alter table public.active_patients add foreign key (contact_id) references public.contacts on delete cascade",
        "alter table public.active_patients add foreign key (organization_id) references public.organizations",
    ],
    "one row a contact": ["create unique index one_a_contact on public.active_patients (contact_id)"],
    "extra, generated and default columns": [
        "alter table public.active_patients add note text, add source text not null default 'cliniko'",
        "alter table public.active_patients add two integer generated always as (2 * total_appointment_count) stored",
    ],
    "organizations as varchar": [
        "drop policy organization_isolation on public.active_patients",
        "drop policy organization_boundary on public.active_patients",
        "alter table public.active_patients alter organization_id type varchar(99)",
    ],
}


@pytest.mark.parametrize("changes", LIVED_WITH.values(), ids=LIVED_WITH)
def test_tables_of_other_shapes_are_lived_with(database_with_contact: Database, changes: list[str]) -> None:
    administer(database_with_contact.url, *changes)
    schema.migrate(database_with_contact)
    assert [str(each) for each in rehearse(database_with_contact)] == []


@pytest.mark.parametrize(("kind", "organization"), [("uuid", str(UUID(int=7))), ("integer", "7"), ("varchar(36)", "a")])
def test_organizations_of_other_types_are_written(empty_database_url: URL, kind: str, organization: str) -> None:
    administer(
        empty_database_url,
        sql("schema/application_tables"),
        ACTIVE_PATIENTS_TABLE,
        f"alter table public.active_patients alter organization_id type {kind} using null",
        f"insert into public.contacts (id, organization_id) values ('{UUID(int=1)}', '{organization}')",
    )
    database = Database(empty_database_url)
    try:
        schema.migrate(database)
        assert [str(each) for each in rehearse(database)] == []
        row = (UUID(int=1), 1, 0, 1, None, None, None, None, None)
        with database.organization(organization) as connection:
            assert merge.replace_by_rows(connection, ACTIVE_PATIENTS, [row]).inserted == 1
            assert merge.replace_by_rows(connection, ACTIVE_PATIENTS, [row]) == merge.Written()
        assert organizations.delete_tenant_rows(database, organization) == 1
    finally:
        database.close()


ALTER = "alter table public.active_patients alter {0} type {1} using null"
USABLE_COLUMNS = {
    "arrays as json": [ALTER.format("recent_appointments", "json"), ALTER.format("upcoming_appointments", "json")],
    "arrays as text": [ALTER.format("recent_appointments", "text"), ALTER.format("upcoming_appointments", "text")],
    "instants with a zone": [
        ALTER.format(column, "timestamptz")
        for column in ("last_appointment_date", "search_date_from", "search_date_to", "created_at", "updated_at")
    ],
    "counts as bigint": ["alter table public.active_patients alter recent_appointment_count type bigint"],
    "ids as uuid": ["alter table public.active_patients drop id, add id uuid not null default gen_random_uuid()"],
    "Cliniko's ids as bigint": ["alter table public.contacts alter cliniko_patient_id type bigint using null"],
    "times of credentials without a zone": ["alter table public.api_credentials alter updated_at type timestamp"],
    "credentials as json": ["alter table public.api_credentials alter credentials_encrypted type json"],
}


@pytest.mark.parametrize("changes", USABLE_COLUMNS.values(), ids=USABLE_COLUMNS)
def test_columns_of_other_types_are_written_and_read(empty_database_url: URL, changes: list[str]) -> None:
    administer(empty_database_url, sql("schema/application_tables"), ACTIVE_PATIENTS_TABLE, *changes)
    administer(empty_database_url, f"insert into public.contacts (id, organization_id) values ('{UUID(int=1)}', 'a')")
    database = Database(empty_database_url)
    try:
        schema.migrate(database)
        assert [str(each) for each in rehearse(database)] == []
        last = datetime(2026, 6, 1, 9, 30, tzinfo=UTC)
        row = (UUID(int=1), 1, 0, 1, last.replace(tzinfo=None), '[{"id": "7"}]', "[]", None, None)
        with database.organization("a") as connection:
            assert merge.replace_by_rows(connection, ACTIVE_PATIENTS, [row]).inserted == 1
            assert merge.replace_by_rows(connection, ACTIVE_PATIENTS, [row]) == merge.Written()
            (read,) = active_patients.page(
                connection, Order.LAST_APPOINTMENT, descending=True, filters=Filters(), after=None, limit=2
            )
        assert (read["last_appointment_date"], read["recent_appointments"]) == (last, [{"id": "7"}])
        with database.operator() as connection:
            organizations.save(connection, "a", "A", {"encrypted_data": "-"}, validated=True)
            assert organizations.stored_credentials(connection, "a") == {"encrypted_data": "-"}
    finally:
        database.close()


UNUSABLE_COLUMNS = {
    "contacts.id": ("text", "uuid"),
    "active_patients.contact_id": ("text", "uuid"),
    "active_patients.recent_appointment_count": ("text", "integer"),
    "active_patients.last_appointment_date": ("date", "timestamp without time zone"),
    "active_patients.search_date_to": ("text", "timestamp without time zone"),
    "active_patients.upcoming_appointments": ("character varying(99)", "jsonb"),
    "api_credentials.credentials_encrypted": ("character varying(99)", "jsonb"),
    "api_credentials.is_active": ("integer", "boolean"),
}


@pytest.mark.parametrize(("column", "types"), UNUSABLE_COLUMNS.items(), ids=UNUSABLE_COLUMNS)
def test_column_of_an_unusable_type_is_named(empty_database_url: URL, column: str, types: tuple[str, str]) -> None:
    table, _, name = column.partition(".")
    administer(
        empty_database_url,
        sql("schema/application_tables"),
        ACTIVE_PATIENTS_TABLE,
        f"alter table public.{table} alter {name} drop default, alter {name} type {types[0]} using null",
    )
    database = Database(empty_database_url)
    before = schema_objects(database)
    try:
        with pytest.raises(DatabaseSetupError) as raised:
            schema.migrate(database)
        assert_one_line(raised.value, f"The column {name} of public.{table}", types[0].partition("(")[0], types[1])
        assert schema_objects(database) == before
        administer(empty_database_url, str(raised.value).split("`")[1].replace("is_active::", "(is_active = 1)::"))
        assert schema.migrate(database).changed
    finally:
        database.close()


def test_views_of_the_application_are_named(database: Database) -> None:
    owner = f"viewer_{uuid4().hex}"
    administer(
        database.url,
        f"create role {owner}",
        "create view public.people as select contact_id from public.active_patients",
        f"alter view public.people owner to {owner}",
    )
    try:
        (warning,) = [each for each in schema.migrate(database).warnings if "people" in each]
        assert owner in warning
        administer(database.url, warning.split("`")[1])
        assert not any("people" in each for each in schema.migrate(database).warnings)
    finally:
        administer(database.url, f"drop owned by {owner} cascade", f"drop role {owner}")
