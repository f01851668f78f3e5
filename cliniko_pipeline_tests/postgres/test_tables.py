"""What merges are told about the tables they write. That the database agrees is an integration test."""

import pytest

from cliniko_pipeline.postgres.merge import Written, quote
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, CONTACT_MAPPING, TENANT_TABLES, WRITTEN, Table


@pytest.mark.parametrize("table", WRITTEN, ids=lambda table: table.name)
def test_a_table_says_each_thing_once_and_nothing_of_the_organization(table: Table) -> None:
    named = (*table.key, *table.columns, *table.stamps)
    assert len(named) == len(set(named))
    assert "organization_id" not in named
    assert table.key
    assert table.written == table.key + table.columns


@pytest.mark.parametrize("table", WRITTEN, ids=lambda table: table.name)
def test_a_table_is_stamped_and_the_time_of_insertion_is_one_of_the_stamps(table: Table) -> None:
    assert table.stamps
    assert table.inserted is None or table.inserted in table.stamps
    # Set on insert only: something else must tell when a row was last changed.
    assert set(table.stamps) != {table.inserted}


def test_every_table_that_is_written_is_a_tenant_table_once() -> None:
    assert len(TENANT_TABLES) == len(set(TENANT_TABLES))
    assert {table.qualified for table in WRITTEN} <= set(TENANT_TABLES)


def test_the_tables_stand_where_others_look_for_them() -> None:
    assert CONTACT_MAPPING.qualified == '"cliniko"."contact_mapping"'
    assert ACTIVE_PATIENTS.qualified == '"public"."active_patients"'
    assert {f"{table.schema}.{table.name}" for table in WRITTEN} >= {"cliniko.patients", "cliniko.appointments"}


@pytest.mark.parametrize(
    ("name", "quoted"), [("id", '"id"'), ('a"b', '"a""b"'), ('"; drop --', '"""; drop --"'), ("", '""')]
)
def test_a_name_is_quoted_so_that_it_stays_one(name: str, quoted: str) -> None:
    assert quote(name) == quoted


def test_what_was_written_adds_up() -> None:
    assert Written(1, 2, 3) + Written(inserted=10) + Written() == Written(11, 2, 3)
