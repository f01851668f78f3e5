"""Tests of the organization role, of which each database has its own, and of leftovers of other roles."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline_tests.support.databases import administer, organization_role_of, owned_database
from cliniko_pipeline_tests.support.earlier_versions import SHARED_ROLE, migrate_with_shared_role
from cliniko_pipeline_tests.support.schemas import assert_one_line
from cliniko_pipeline_tests.support.tenants import MINE, sow


@pytest.fixture
def production(server: URL) -> Iterator[Database]:
    with owned_database(server) as database:
        yield database


@pytest.fixture
def staging(server: URL) -> Iterator[Database]:
    with owned_database(server) as database:
        yield database


def stolen_patients(intruder: Database, target: Database, role: str) -> int:
    """Return the number of patients of `target` that the user of another database can read."""
    visitor = Database(intruder.url.set(database=target.url.database))
    try:
        with visitor.operator() as connection:
            connection.exec_driver_sql(f"set local role {role}; set local app.organization_id = '{MINE}'")
            return connection.exec_driver_sql("select count(*) from cliniko.patients").scalar_one()
    finally:
        visitor.close()


def test_user_of_another_database_enters_no_organization(production: Database, staging: Database) -> None:
    for database in (production, staging):
        schema.migrate(database)
        schema.require_isolation(database)
    sow(production)
    for role in (organization_role_of(production.url), organization_role_of(staging.url)):
        with pytest.raises(DatabaseSetupError, match="permission denied"):
            stolen_patients(staging, production, role)


def test_shared_role_of_an_earlier_version_is_replaced(
    production: Database, staging: Database, server: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    for database in (production, staging):
        administer(
            server,
            f"do $$ begin create role {SHARED_ROLE} nologin; exception when duplicate_object then null; end $$",
            f"grant {SHARED_ROLE} to {database.url.username}",
        )
        migrate_with_shared_role(database, monkeypatch)
    administer(
        production.url,
        "create table public.audit (x integer)",
        f"grant insert on public.audit to {SHARED_ROLE}",
        f"insert into cliniko.patients (organization_id, id, created_at, updated_at) select '{MINE}', '1', now(), now()"
        f" from (select set_config('app.organization_id', '{MINE}', false)) as entered",
    )
    assert stolen_patients(staging, production, SHARED_ROLE) == 1
    first = schema.migrate(production)
    with pytest.raises(DatabaseSetupError, match="permission denied"):
        stolen_patients(staging, production, SHARED_ROLE)
    with production.organization(MINE) as connection:
        assert connection.exec_driver_sql("select id from cliniko.patients").scalars().all() == ["1"]
        connection.exec_driver_sql("insert into public.audit values (1)")
    assert first.changed
    assert [SHARED_ROLE in warning and "other databases" in warning for warning in first.warnings] == [True]
    schema.require_isolation(production)
    assert not schema.migrate(production).changed
    last = schema.migrate(staging)
    schema.require_isolation(staging)
    # From version 16 on, an owner who did not create the role may not drop it.
    assert all("is unused" in warning for warning in last.warnings)
    administer(server, *(warning.split("`")[1] for warning in last.warnings))
    with production.operator() as connection:
        assert connection.exec_driver_sql(f"select from pg_roles where rolname = '{SHARED_ROLE}'").rowcount == 0


def test_copy_of_a_database_gets_a_role_of_its_own(production: Database, server: URL) -> None:
    """Before the migration, the copy's organizations cannot be entered.

    The migration revokes the original role's rights.
    """
    schema.migrate(production)
    original = organization_role_of(production.url)
    production.close()
    name, user = f"copy_{uuid4().hex}", production.url.username
    administer(server, f"create database {name} template {production.url.database} owner {user}")
    copy = Database(production.url.set(database=name))
    try:
        role = organization_role_of(copy.url)
        with pytest.raises(DatabaseSetupError, match="cliniko-pipeline migrate"), copy.organization(MINE):
            pytest.fail("it was entered")
        with pytest.raises(DatabaseSetupError, match="cliniko-pipeline migrate"):
            schema.require_isolation(copy)
        assert schema.migrate(copy).changed
        schema.require_isolation(copy)
        schema.require_isolation(production)
        with pytest.raises(DatabaseSetupError, match="permission denied"), copy.operator() as connection:
            connection.exec_driver_sql(f"set local role {original}; select count(*) from cliniko.patients")
    finally:
        copy.close()
        administer(server, f"drop database {name} with (force)", f"drop role if exists {role}")


def test_member_of_the_role_who_is_no_user_is_named(production: Database, server: URL) -> None:
    schema.migrate(production)
    role, stranger = organization_role_of(production.url), f"stranger_{uuid4().hex}"
    administer(server, f"create role {stranger} login", f"grant {role} to {stranger}")
    try:
        with pytest.raises(DatabaseSetupError) as raised:
            schema.require_isolation(production)
        assert_one_line(raised.value, stranger, role)
        assert schema.migrate(production).warnings == (str(raised.value),)
        administer(server, str(raised.value).split("`")[1])
        schema.require_isolation(production)
    finally:
        administer(server, f"drop role {stranger}")


def test_user_who_may_not_create_roles_is_told_the_commands(production: Database, server: URL) -> None:
    administer(server, f"alter role {production.url.username} nocreaterole")
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(production)
    assert_one_line(raised.value, organization_role_of(production.url), "lacks a privilege")
    administer(server, *str(raised.value).split("`")[1].split(";"))
    assert schema.migrate(production).changed
    schema.require_isolation(production)
