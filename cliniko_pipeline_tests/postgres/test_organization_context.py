"""Tests of the organization context, a transaction's role and `app.organization_id`, and of its functions."""

from collections.abc import Callable
from typing import cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema.isolation import organization_role
from cliniko_pipeline.postgres.tables import CONTACT_MAPPING
from cliniko_pipeline.postgres.writing.merge import replace_by_rows, upsert
from cliniko_pipeline_tests.support.tenants import MINE, THEIRS, sow


@pytest.fixture(params=["module_database", "owner_database"], ids=["superuser", "owner"])
def database(request: pytest.FixtureRequest) -> Database:
    """Return a database with a row of each organization in every tenant table."""
    database = request.getfixturevalue(request.param)
    sow(database)
    return database


def test_contacts_of_another_organization_are_not_shown(database: Database) -> None:
    for organization in (MINE, THEIRS, "org_without_any", "", "%", "' or true --"):
        with database.organization(organization) as connection:
            names = connection.execute(sa.text("select name from cliniko.organization_contacts()")).scalars().all()
        assert names == ([organization] if organization in {MINE, THEIRS} else [])


def test_contacts_function_ignores_objects_of_the_caller(database: Database) -> None:
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
                "create function pg_temp.spy(value text, other text) returns boolean language plpgsql as"
                " 'begin raise exception ''reached''; end'"
            ),
            "create operator pg_temp.= (leftarg = text, rightarg = text, function = pg_temp.spy)",
            "set local search_path = pg_temp, public, pg_catalog",
        ):
            connection.exec_driver_sql(statement)
        names = connection.execute(sa.text("select name from cliniko.organization_contacts()")).scalars().all()
        assert names == [MINE]
        connection.rollback()


def test_merges_of_another_organization_are_not_followed(database: Database) -> None:
    # The merges of each organization lead to an id that exists only in the other organization.
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


class _InterruptionError(BaseException):
    pass


def _interrupted_while_copying(connection: Connection) -> None:
    driver = cast("psycopg.Connection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(b"copy cliniko.patients to stdout"):
        raise _InterruptionError


ENDINGS: dict[str, Callable[[Connection], object]] = {
    "committed": lambda connection: connection.execute(sa.text("select 1")),
    "rolled back": lambda connection: connection.rollback(),
    "failed": lambda connection: connection.execute(sa.text("select 1 / 0")),
    "interrupted": _interrupted_while_copying,
}


@pytest.mark.parametrize(("ending", "is_resumable"), [*((each, False) for each in ENDINGS), ("committed", True)])
def test_connection_keeps_no_context_and_no_row(database: Database, ending: str, is_resumable: bool) -> None:
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
            assert list(_staging_tables(connection).values()) == [1]
            ENDINGS[ending](connection)
    except (ClinikoPipelineError, _InterruptionError):
        pass
    with database.operator() as connection:
        after = connection.execute(state).one()
        # A staging table may stay with the connection only if it is empty.
        role = organization_role(connection)
        connection.exec_driver_sql(f"set local role {role}")
        assert set(_staging_tables(connection).values()) <= {0}
    with database.organization(THEIRS) as connection:
        assert connection.execute(sa.text("select patient_id from cliniko.contact_mapping")).scalars().all() == ["2"]
        assert set(_staging_tables(connection).values()) <= {0}
    assert inside.synchronous_commit == ("off" if is_resumable else before.synchronous_commit)
    assert inside[1:5] == (role, before[2], MINE, role)
    assert after == before
    assert after[3] == ""


def _staging_tables(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each temporary table."""
    names = connection.exec_driver_sql(
        "select oid::regclass::text from pg_class where relnamespace = pg_my_temp_schema() and relkind = 'r'"
    ).scalars()
    return {name: connection.exec_driver_sql(f"select count(*) from {name}").scalar_one() for name in list(names)}
