"""Tests of the removal of an organization, which can be repeated after a failure and affects no other organization."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from cliniko_pipeline.errors import DataError, OrganizationUnknownError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.tables import TENANT_TABLES
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.locks import waits_for_a_lock
from cliniko_pipeline_tests.support.tenants import MINE, THEIRS, sow
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS, wait_until


@pytest.fixture
def database(module_database: Database) -> Database:
    sow(module_database)
    with module_database.operator() as connection:
        for organization in (MINE, THEIRS):
            organizations.save(connection, organization, organization, {"encrypted_data": "x"}, validated=False)
    return module_database


def test_removal_deletes_rows_and_credentials_of_one_organization(database: Database) -> None:
    assert organizations.remove(database, MINE) == len(TENANT_TABLES)
    assert _rows(database, MINE) == 0
    assert _credentials(database) == {THEIRS: True}
    with pytest.raises(OrganizationUnknownError):
        organizations.remove(database, MINE)
    assert _rows(database, THEIRS) == len(TENANT_TABLES)
    with database.operator() as connection:
        assert connection.execute(sa.text("select count(*) from public.contacts")).scalar_one() == 2
        assert connection.execute(sa.text("select count(*) from public.organizations")).scalar_one() == 2


def test_failed_removal_disables_the_organization_and_is_repeatable(database: Database) -> None:
    administer(
        database.url,
        "create function public.refuse() returns trigger language plpgsql as 'begin raise exception ''not now''; end'",
        "create trigger refuse before delete on public.api_credentials execute function public.refuse()",
    )
    try:
        with pytest.raises(DataError):
            organizations.remove(database, MINE)
        assert _rows(database, MINE) == 0
        assert _credentials(database) == {MINE: False, THEIRS: True}
    finally:
        administer(database.url, "drop function public.refuse() cascade")
    # The rows of an organization without credentials are deleted too.
    sow(database)
    administer(database.url, f"delete from public.api_credentials where organization_id = '{MINE}'")
    assert organizations.remove(database, MINE) == len(TENANT_TABLES)
    assert _credentials(database) == {THEIRS: True}


def test_removal_waits_for_a_running_sync_and_deletes_its_rows(database: Database) -> None:
    with ThreadPoolExecutor(1) as thread:
        with database.organization_lock(MINE):
            removal = thread.submit(organizations.remove, database, MINE)
            wait_until(lambda: waits_for_a_lock(database), "the removal does not wait for the lock")
            assert not removal.done()
            assert _credentials(database) == {MINE: False, THEIRS: True}
            with database.organization(MINE) as connection:
                connection.execute(
                    sa.text(
                        "insert into cliniko.patients (organization_id, id, created_at, updated_at)"
                        f" values ('{MINE}', 'late', now(), now())"
                    )
                )
        # The two additional rows are the patient and the state of the table.
        assert removal.result(LIMIT_SECONDS) == len(TENANT_TABLES) + 2
    assert _rows(database, MINE) == 0


def _rows(database: Database, organization_id: str) -> int:
    with database.organization(organization_id) as connection:
        return sum(connection.execute(sa.text(f"select count(*) from {table}")).scalar_one() for table in TENANT_TABLES)


def _credentials(database: Database) -> dict[str, bool]:
    with database.operator() as connection:
        return {each.id: each.is_active for each in organizations.organizations(connection)}
