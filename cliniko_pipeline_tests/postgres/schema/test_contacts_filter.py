"""Tests of CLINIKO_CONTACTS_FILTER, the operator's condition that contacts must meet."""

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, SettingsError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.contacts_filter import require_stored
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.hostile_accounts import contact, patient
from cliniko_pipeline_tests.support.stored_clinics import StoredClinic, came

NO_LEADS = "kind is distinct from 'lead' and name not like 'Test %'"


@pytest.fixture
def clinic(database: Database, database_url: URL) -> StoredClinic:
    """Return a clinic with the patient Ann and two contacts of her name. The second contact is a lead."""
    administer(database_url, "alter table public.contacts add column kind text")
    clinic = StoredClinic(database)
    clinic.store(patients=[patient("1", "Ann")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, name="Ann"), contact(2, name="Ann"))
    administer(database_url, f"update public.contacts set kind = 'lead' where id = '{clinic.contact_id(2)}'")
    return clinic


def contact_ids(clinic: StoredClinic) -> list[object]:
    with clinic.database.organization(clinic.id) as connection:
        return list(connection.exec_driver_sql("select id from cliniko.organization_contacts()").scalars())


def fingerprint(clinic: StoredClinic) -> str:
    with clinic.database.organization(clinic.id) as connection:
        return connection.exec_driver_sql("select cliniko.contacts_fingerprint()").scalar_one()


def active(clinic: StoredClinic) -> list[object]:
    with clinic.database.organization(clinic.id) as connection:
        return list(connection.exec_driver_sql("select contact_id from public.active_patients").scalars())


def test_only_contacts_that_meet_the_filter_count(clinic: StoredClinic) -> None:
    clinic.compute()
    assert active(clinic) == []
    migration = schema.migrate(clinic.database, contacts_filter=NO_LEADS)
    assert (migration.changed, migration.filter_changed) == (False, True)
    assert not schema.migrate(clinic.database, contacts_filter=NO_LEADS).filter_changed
    clinic.compute()
    assert active(clinic) == contact_ids(clinic) == [clinic.contact_id(1)]
    assert schema.migrate(clinic.database).filter_changed
    assert len(contact_ids(clinic)) == 2


def test_filter_of_other_tables_of_the_application_works(clinic: StoredClinic, database_url: URL) -> None:
    administer(
        database_url,
        f"create table public.chosen as select id from public.contacts where id <> '{clinic.contact_id(2)}'",
    )
    schema.migrate(clinic.database, contacts_filter="contacts.id in (select id from public.chosen)")
    assert contact_ids(clinic) == [clinic.contact_id(1)]


def test_change_of_filter_changes_the_fingerprint(clinic: StoredClinic) -> None:
    found = [fingerprint(clinic)]
    for condition in ("true", "name is not null", None):
        schema.migrate(clinic.database, contacts_filter=condition)
        found.append(fingerprint(clinic))
    assert len(set(found)) == 3
    assert found[0] == found[-1]


@pytest.mark.parametrize(
    "condition", ["true", "true or true", "organization_id is not null or id is not null", "true) or (true"]
)
def test_filter_opens_no_other_organization(clinic: StoredClinic, condition: str) -> None:
    """This holds even for a condition that the settings refuse."""
    clinic.add_contacts({**contact(3, name="Ann"), "organization_id": "neighbour"})
    schema.migrate(clinic.database, contacts_filter=condition)
    assert contact_ids(clinic) == [clinic.contact_id(1), clinic.contact_id(2)]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("kind =", 'syntax error at or near ")"'),
        ("sort = 'lead'", 'column "sort" does not exist'),
        ("kind", "argument of WHERE must be type boolean, not type text"),
        ("count(*) > 1", "aggregate functions are not allowed in WHERE"),
        ("is_patient(kind)", "function is_patient(text) does not exist"),
        ("1 / 0 = 1", "division by zero"),
    ],
)
def test_wrong_filter_fails_migrate_before_any_change(
    clinic: StoredClinic, database_url: URL, condition: str, said: str
) -> None:
    schema.migrate(clinic.database, contacts_filter=NO_LEADS)
    administer(database_url, "comment on schema cliniko is 'earlier'")
    with pytest.raises(SettingsError) as refused:
        schema.migrate(clinic.database, contacts_filter=condition)
    assert str(refused.value).startswith("CLINIKO_CONTACTS_FILTER must be an SQL condition")
    assert said in str(refused.value)
    with clinic.database.operator() as connection:
        comment = connection.scalar(sa.text("select obj_description('cliniko'::regnamespace, 'pg_namespace')"))
    assert comment == "earlier"
    assert contact_ids(clinic) == [clinic.contact_id(1)]


@pytest.mark.parametrize(
    ("condition", "state"), [("1 / (length(name) - 3) = 1", "22012"), ("cast(name as integer) > 1", "22P02")]
)
def test_filter_that_fails_on_a_row_names_the_setting(clinic: StoredClinic, condition: str, state: str) -> None:
    schema.migrate(clinic.database, contacts_filter=NO_LEADS)
    clinic.compute()
    before = active(clinic)
    schema.migrate(clinic.database, contacts_filter=condition)
    for action in (clinic.compute, lambda: fingerprint(clinic)):
        with pytest.raises(DatabaseSetupError) as failed:
            action()
        assert "CLINIKO_CONTACTS_FILTER fails on public.contacts" in str(failed.value)
        assert state in str(failed.value)
        assert "Ann" not in str(failed.value)
    assert active(clinic) == before == [clinic.contact_id(1)]


def test_filter_is_not_computed_for_other_organizations(clinic: StoredClinic) -> None:
    clinic.add_contacts({**contact(3, name="Bo"), "organization_id": "neighbour"})
    schema.migrate(clinic.database, contacts_filter="1 / (length(name) - 2) = 1")
    assert len(contact_ids(clinic)) == 2


def test_column_of_the_filter_that_goes_is_named(clinic: StoredClinic, database_url: URL) -> None:
    schema.migrate(clinic.database, contacts_filter=NO_LEADS)
    administer(database_url, "alter table public.contacts drop column kind")
    with pytest.raises(DatabaseSetupError, match=r'CLINIKO_CONTACTS_FILTER .* column "kind" does not exist'):
        contact_ids(clinic)


def test_other_setting_than_the_stored_one_asks_for_migrate(clinic: StoredClinic) -> None:
    for stored, setting, words in (
        (None, "true", "is set, but the database has no filter"),
        ("true", None, "is not set, but the database has a filter"),
        ("true", "kind is null", "differs from the database's filter"),
    ):
        schema.migrate(clinic.database, contacts_filter=stored)
        require_stored(clinic.database, stored)
        with pytest.raises(
            DatabaseSetupError, match=f"^CLINIKO_CONTACTS_FILTER {words}: run `cliniko-pipeline migrate`"
        ):
            require_stored(clinic.database, setting)


def test_contact_that_does_not_count_is_explained(clinic: StoredClinic, database_url: URL) -> None:
    schema.migrate(clinic.database, contacts_filter=NO_LEADS)
    clinic.compute()
    assert clinic.explain("1").match.contact_absence is None
    schema.migrate(clinic.database, contacts_filter="kind = 'lead'")
    assert clinic.explain("1").match.contact_absence == "filtered"
    administer(database_url, "alter table public.contacts add column deleted_at timestamptz default now()")
    assert clinic.explain("1").match.contact_absence == "soft_deleted"
    clinic.delete_contact(1)
    assert clinic.explain("1").match.contact_absence == "deleted"
