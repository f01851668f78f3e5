"""Tests that `cliniko.contacts_fingerprint()` changes exactly when an organization's contacts change."""

import pytest
import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.databases import administer


def fingerprints(url: sa.URL, *statements: str) -> list[str]:
    """Return the fingerprint of organization a's contacts after each statement."""
    opened = Database(url)
    found: list[str] = []
    for statement in statements:
        administer(url, statement)
        with opened.organization("a") as connection:
            found.append(connection.execute(sa.text("select cliniko.contacts_fingerprint()")).scalar_one())
    opened.close()
    return found


@pytest.mark.parametrize(
    "statements",
    [
        (
            "alter table public.contacts rename to people",
            "create view public.contacts as select * from public.people",
        ),
        ("alter table public.contacts drop column first_name",),
        (
            "alter table public.contacts rename to people",
            "create table public.contacts (like public.people including defaults) partition by list (organization_id)",
            "create table public.others partition of public.contacts default",
            "insert into public.contacts select * from public.people",
        ),
        ("alter table public.contacts alter cliniko_patient_id type bigint using cliniko_patient_id::bigint",),
    ],
    ids=["a view", "without first names", "partitions", "numbers"],
)
def test_fingerprint_of_contacts_of_any_kind_changes(database_url: sa.URL, statements: tuple[str, ...]) -> None:
    administer(
        database_url,
        "insert into public.contacts (organization_id, name) values ('a', 'Ann Lee'), ('a', 'Bo Fam'), ('b', 'Cy')",
        *statements,
    )
    *earlier, last = fingerprints(
        database_url,
        "select",
        "update public.contacts set name = case name when 'Bo Fam' then 'Ann Lee' else 'Bo Fam' end where name <> 'Cy'",
        "update public.contacts set cliniko_patient_id = '7' where name = 'Ann Lee'",
        "update public.contacts set email = '' where name = 'Ann Lee'",
        "insert into public.contacts (organization_id, name) values ('a', null)",
        "delete from public.contacts where name is null",
    )
    assert len(set(earlier)) == 5
    assert last == earlier[3], "as it was before the contact came and went"


def test_fingerprint_of_moved_contacts_is_the_same(database_url: sa.URL) -> None:
    administer(database_url, "insert into public.contacts (organization_id, name) values ('a', 'Ann'), ('a', 'Bo')")
    same = fingerprints(
        database_url,
        "select",
        "update public.contacts set phone = '5' where name = 'Ann'",
        "vacuum full public.contacts",
    )
    assert len(set(same)) == 1
    assert fingerprints(database_url, "update public.contacts set organization_id = 'b'") != same[:1]
