"""Tests of pooled connections: their state between two transactions, and the settings that they start with."""

from contextlib import suppress
from datetime import UTC, datetime

import pytest

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres.engine import BoundStatement, Database, execute_pipelined, sql
from cliniko_pipeline.postgres.schema.isolation import organization_role
from cliniko_pipeline.postgres.tables import CONTACT_MAPPING, PATIENTS
from cliniko_pipeline.postgres.writing.merge import Written, replace_by_query, upsert
from cliniko_pipeline_tests.support.databases import administer

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def add(database: Database, patient_id: str) -> Written:
    with database.organization("a") as connection:
        return upsert(connection, PATIENTS, [(patient_id, "A", None, None, None, None, None, None, NOW, NOW)])


def test_connection_can_write_after_a_failed_commit(database: Database) -> None:
    administer(
        database.url,
        "create function refuse() returns trigger language plpgsql as 'begin raise exception ''no''; end'",
        "create constraint trigger refuse after insert on cliniko.patients deferrable initially deferred"
        " for each row when (new.id = '1') execute function refuse()",
    )
    with pytest.raises(DataError):
        add(database, "1")
    assert add(database, "2") == Written(inserted=1)


def test_pipelined_statements_are_rolled_back_on_failure(database: Database) -> None:
    def fails() -> None:
        raise KeyError

    def sent(name: str) -> BoundStatement:
        return "insert into cliniko.crawls (organization_id, resource, started_at) values ('a', :name, now())", {
            "name": name
        }

    with suppress(KeyError), database.organization("a") as connection:
        execute_pipelined(connection, [sent("x"), sent("y")], after_sending=fails)
        pytest.fail("nothing failed")
    with pytest.raises(DataError, match="UniqueViolation"), database.organization("a") as connection:
        execute_pipelined(connection, [sent("x"), sent("x"), sent("z")])
    with database.organization("a") as connection:
        count: BoundStatement = ("select count(*) from cliniko.crawls where resource <> :none", {"none": ""})
        nothing: BoundStatement = ("select 1 from cliniko.crawls where false", {})
        assert execute_pipelined(connection, [count, nothing, count]) == [(0,), None, (0,)]
        assert connection.exec_driver_sql("select current_user").scalar_one() == organization_role(connection)


def test_old_string_rules_and_strict_isolation_do_not_matter(database: Database) -> None:
    name = database.url.database
    administer(
        database.url,
        f"alter database {name} set standard_conforming_strings = off",
        f"alter database {name} set default_transaction_isolation = serializable",
    )
    database.close()
    with database.organization("a") as connection:
        assert connection.exec_driver_sql("show transaction_isolation").scalar_one() == "read committed"
        assert replace_by_query(connection, CONTACT_MAPPING, sql("transforms/contact_mapping"), {}) == Written()
