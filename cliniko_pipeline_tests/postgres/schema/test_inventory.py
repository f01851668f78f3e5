"""Tests that `migrate` restores missing objects of the pipeline, for any recorded version of the database."""

from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.inventory import KEYS, OPERATOR_TABLES
from cliniko_pipeline.postgres.schema.isolation import organization_role
from cliniko_pipeline.postgres.schema.rehearsal import require_rehearsed
from cliniko_pipeline.postgres.tables import TENANT_TABLES
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.schemas import assert_one_line, has_pipeline_schema, schema_objects
from cliniko_pipeline_tests.support.tenants import MINE, sow

UNIQUE_INDEX = "active_patients_organization_id_contact_id_key"


def losses(database: Database) -> dict[str, str]:
    """Return the statements that remove an object, by the name of the object in reports."""
    lost = {
        "the table public.active_patients": "drop table public.active_patients",
        "the unique index of public.active_patients (contact_id,organization_id)": f"drop index public.{UNIQUE_INDEX}",
        "the unique index of cliniko.crawls": "alter table cliniko.crawls drop constraint crawls_pkey",
        "the unique index of cliniko.contact_mapping (contact_id,organization_id)": (
            "alter table cliniko.contact_mapping drop constraint contact_mapping_organization_id_contact_id_key"
        ),
        "the trigger note_update of cliniko.patients": "alter table cliniko.patients disable trigger note_update",
        "to make temporary tables": "revoke temporary on database {database} from {role}, public",
        "to use the sequence": "revoke usage on sequence public.active_patients_id_seq from {role}",
        "to use the schema cliniko": "revoke usage on schema cliniko from {role}",
    }
    lost |= {f"the function cliniko.{name}": _drop_function(database, name) for name in map(_name_of, schema.FUNCTIONS)}
    for table in TENANT_TABLES:
        name = table.replace('"', "")
        lost[f" on {name}"] = f"revoke update on {table} from {{role}}"
    with database.operator() as connection:
        role = organization_role(connection)
    return {words: statement.format(database=database.url.database, role=role) for words, statement in lost.items()}


def test_migration_makes_again_what_is_missing(database: Database) -> None:
    """Every command reports the missing object and nothing else. The rows of other tables are kept."""
    sow(database)
    before = schema_objects(database)
    for words, loss in losses(database).items():
        administer(database.url, loss)
        with pytest.raises(DatabaseSetupError) as raised:
            schema.require_current(database)
        assert_one_line(raised.value, words, "`cliniko-pipeline migrate` creates missing objects again")
        assert any(words in each for each in schema.migrate(database).made_again), words
        schema.require_current(database)
        assert not schema.migrate(database).changed
    # A primary key is restored as a unique index.
    assert [each for each in before if each not in schema_objects(database)] == ["cliniko.crawls_pkey iff"]
    assert require_rehearsed(database) == []


def test_lost_unique_index_is_made_again_without_duplicates(database: Database) -> None:
    sow(database)
    double = "insert into public.active_patients (organization_id, contact_id, recent_appointment_count,"
    double += " upcoming_appointment_count, total_appointment_count) select organization_id, contact_id, 9, 9, 9"
    administer(database.url, f"drop index public.{UNIQUE_INDEX}", f"{double} from public.active_patients")
    assert schema.migrate(database).made_again
    with database.organization(MINE) as connection:
        kept = connection.execute(sa.text("select recent_appointment_count from public.active_patients"))
        assert list(kept.scalars()) == [1]


def test_lost_table_of_the_pipeline_is_named(database: Database) -> None:
    """The restored table would be empty, although the crawls say that its resource was read."""
    for table in [*TENANT_TABLES, *OPERATOR_TABLES]:
        if "active_patients" in table:
            continue
        administer(database.url, f"alter table {table} rename to lost")
        for action in (schema.migrate, schema.require_current):
            with pytest.raises(DatabaseSetupError) as raised:
                action(database)
            assert_one_line(raised.value, table.replace('"', ""), "backup", "drop schema cliniko cascade")
        name = table.replace('"', "").partition(".")[2]
        administer(database.url, f"alter table cliniko.lost rename to {name}")
    assert not schema.migrate(database).changed


def test_inventory_names_every_table_and_key(database: Database) -> None:
    with database.operator() as connection:
        inspector = sa.inspect(connection)
        tables = {f"cliniko.{name}" for name in inspector.get_table_names("cliniko")} - {"cliniko.schema_version"}
        keys = {
            name: tuple(inspector.get_pk_constraint(name.partition(".")[2], "cliniko")["constrained_columns"])
            for name in tables
        }
    named = {name.replace('"', "") for name in (*TENANT_TABLES, *OPERATOR_TABLES)}
    assert tables == named - {"public.active_patients"}
    for key in KEYS:
        name = key.table.replace('"', "")
        assert name == "public.active_patients" or key.is_deferred or keys[name] == key.columns


@pytest.fixture
def application(empty_database_url: URL) -> Iterator[Database]:
    administer(empty_database_url, sql("schema/application_tables"))
    database = Database(empty_database_url)
    yield database
    database.close()


@pytest.mark.parametrize(("name", "table"), [("cliniko", "patients"), ("dagster", "runs")])
def test_schema_of_somebody_else_is_named_before_anything_is_made(application: Database, name: str, table: str) -> None:
    administer(application.url, f"create schema {name}", f"create table {name}.{table} (id integer)")
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(application)
    assert_one_line(raised.value, f"the schema name {name}, but", table, f"alter schema {name} rename to")
    administer(application.url, f"alter schema {name} rename to theirs")
    assert not has_pipeline_schema(application)
    assert schema.migrate(application).changed


def _name_of(file: str) -> str:
    return PurePosixPath(file).name


def _drop_function(database: Database, name: str) -> str:
    with database.operator() as connection:
        signature = connection.execute(
            sa.text(
                "select oid::regprocedure::text from pg_proc where pronamespace = 'cliniko'::regnamespace"
                " and proname = :name"
            ),
            {"name": name},
        ).scalar_one()
    return f"drop function {signature} cascade"
