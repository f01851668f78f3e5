"""Tests of database users that bypass row-level security, and of the triggers that they must have."""

from uuid import uuid4

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.schemas import assert_one_line


def test_user_that_row_level_security_does_not_hold_is_named(database: Database, owner_database: Database) -> None:
    (risk,) = schema.risks(database)
    assert "is a superuser" in risk
    assert schema.risks(owner_database) == []


def test_user_with_bypassrls_is_named(fresh_server_url: URL, owner_database: Database) -> None:
    user = f"mighty_{uuid4().hex}"
    administer(fresh_server_url, f"create role {user} login bypassrls password 'mighty'")
    database = Database(owner_database.url.set(username=user, password="mighty"))
    try:
        (risk,) = schema.risks(database)
        assert_one_line(AssertionError(risk), user, "has BYPASSRLS")
    finally:
        database.close()
        administer(fresh_server_url, f"drop role {user}")


def test_session_without_triggers_is_refused(fresh_server_url: URL, owner_database: Database) -> None:
    set_or_reset = f"alter role clinic_owner in database {owner_database.url.database} {{}} session_replication_role"
    administer(fresh_server_url, set_or_reset.format("set") + " = replica")
    second = Database(owner_database.url)
    try:
        with pytest.raises(DatabaseSetupError) as raised, second.organization("a"):
            pytest.fail("it was entered")
        assert_one_line(raised.value, "session_replication_role", "clinic_owner", "clinic")
    finally:
        second.close()
        administer(fresh_server_url, set_or_reset.format("reset"))
