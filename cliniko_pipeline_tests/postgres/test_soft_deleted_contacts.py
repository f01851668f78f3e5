"""Tests that contacts are ignored if the application has marked them as deleted."""

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.hostile_accounts import contact, patient
from cliniko_pipeline_tests.support.stored_clinics import StoredClinic, came


@pytest.mark.parametrize(
    ("column", "deleted", "present"),
    [
        ("deleted_at timestamptz", "now()", "null"),
        ("deleted_at timestamp", "'2026-01-01'", "null"),
        ("is_deleted boolean", "true", "null"),
        ("is_deleted boolean not null default false", "true", "false"),
    ],
)
def test_soft_deleted_contact_is_no_candidate_and_its_row_goes(
    database: Database, database_url: URL, column: str, deleted: str, present: str
) -> None:
    administer(database_url, f"alter table public.contacts add column {column}")
    name = column.split(maxsplit=1)[0]
    clinic = StoredClinic(database)
    clinic.store(patients=[patient("1", "Ann")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, name="Ann"), contact(2, name="Ann"))

    def delete(number: int, value: str) -> None:
        administer(database_url, f"update contacts set {name} = {value} where id = '{clinic.contact_id(number)}'")

    def state() -> tuple[list[object], str]:
        with database.organization(clinic.id) as connection:
            fingerprint = connection.exec_driver_sql("select cliniko.contacts_fingerprint()").scalar_one()
            clinic.compute()
            rows = connection.exec_driver_sql("select contact_id from public.active_patients").scalars()
            return list(rows), fingerprint

    ambiguous, before = state()
    assert ambiguous == []
    delete(2, deleted)
    matched, after = state()
    assert matched == [clinic.contact_id(1)]
    assert after != before
    delete(1, deleted)
    assert state()[0] == []
    delete(1, present)
    assert state()[0] == [clinic.contact_id(1)]


def test_columns_of_other_types_are_ignored(database: Database, database_url: URL) -> None:
    administer(database_url, "alter table public.contacts add column deleted_at text, add column is_deleted text")
    clinic = StoredClinic(database)
    clinic.store(patients=[patient("1", "Ann")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, name="Ann"))
    administer(database_url, "update public.contacts set deleted_at = '', is_deleted = 'no'")
    clinic.compute()
    with database.organization(clinic.id) as connection:
        found = connection.exec_driver_sql("select contact_id from public.active_patients").scalars().all()
    assert found == [clinic.contact_id(1)]
