"""Tests of the rehearsal of a sync, which finds nothing on a good database, changes nothing and reports problems."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema import rehearsal
from cliniko_pipeline.postgres.schema.rehearsal import rehearse, require_rehearsed
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.schemas import assert_one_line
from cliniko_pipeline_tests.support.tenants import MINE, row_versions, sow


@pytest.fixture
def sown(database: Database) -> Database:
    """Return two organizations with a contact each and a row in every tenant table. One has credentials."""
    with database.operator() as connection:
        organizations.save(connection, MINE, "Mine", {"encrypted_data": "-"}, validated=False)
    sow(database)
    return database


def test_rehearsal_finds_nothing_and_leaves_nothing(sown: Database) -> None:
    before = everything(sown)
    assert list(map(str, rehearse(sown))) == []
    assert everything(sown) == before


def test_rehearsal_of_an_empty_database_finds_nothing(database: Database) -> None:
    assert rehearse(database) == []


AUDIT = """
create function public.audit() returns trigger language plpgsql as
'begin insert into {0} values (now()); return null; end';
create trigger audit after {1} on public.active_patients for each row execute function public.audit()
"""
FOREIGN_KEY = """
alter table public.active_patients add constraint elsewhere foreign key (contact_id)
references public.people deferrable initially deferred not valid
"""
BROKEN = {
    "a trigger that writes where the role may not": (
        ["create schema audit", "create table audit.log (at timestamptz)", AUDIT.format("audit.log", "insert")],
        [
            "write active_patients: PostgreSQL refused",
            "permission denied for schema audit",
            "function audit",
            "grant usage on schema audit to cliniko_organization",
        ],
    ),
    "a trigger of which a table lacks a grant": (
        ["create table public.log (at timestamptz)", AUDIT.format("public.log", "delete")],
        ["permission denied for table log", "grant insert on public.log to cliniko_organization", "security definer"],
    ),
    "a check that nothing passes": (
        ["alter table public.active_patients add constraint odd check (recent_appointment_count > 99) not valid"],
        ["write active_patients", 'violates check constraint "odd"', "public.active_patients"],
    ),
    "a foreign key to elsewhere": (
        ["create table public.people (id uuid primary key)", FOREIGN_KEY],
        ["write active_patients", "elsewhere", "drop or loosen elsewhere of public.active_patients"],
    ),
    "a trigger that refers to what is gone": (
        [AUDIT.format("public.gone", "insert")],
        ['relation "public.gone" does not exist', "function audit", "correct the application's function"],
    ),
    "triggers that do not fire": (
        ["alter table cliniko.patients disable trigger note_insert"],
        ["write patients", "triggers of cliniko.patients did not fire", "session_replication_role"],
    ),
    "a column that is gone": (
        ["alter table cliniko.attendees drop column booking_id"],
        ["write attendees", 'column "booking_id"', "cliniko_organization"],
    ),
}


@pytest.mark.parametrize(("changes", "words"), BROKEN.values(), ids=BROKEN)
def test_rehearsal_names_what_is_broken(sown: Database, changes: list[str], words: list[str]) -> None:
    administer(sown.url, *changes)
    before = everything(sown)
    with pytest.raises(DatabaseSetupError) as raised:
        require_rehearsed(sown)
    message = str(raised.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert "cliniko-pipeline migrate" not in message
    assert everything(sown) == before


def test_rehearsal_uses_the_tables_of_dagster(owner_database: Database, fresh_server_url: URL) -> None:
    """The rehearsal uses them as the database user, who may not be their owner."""
    superuser = fresh_server_url.set(database=owner_database.url.database)
    administer(superuser, "create schema dagster", "create table dagster.runs (id serial primary key, body text)")
    try:
        for grant in (
            "usage on schema dagster",
            "select on dagster.runs",
            "insert on dagster.runs",
            "update on dagster.runs",
            "delete on dagster.runs",
            "usage on sequence dagster.runs_id_seq",
        ):
            with pytest.raises(DatabaseSetupError) as raised:
                require_rehearsed(owner_database)
            assert_one_line(raised.value, "A sync cannot use Dagster's tables", f"Run `grant {grant} to clinic_owner`")
            administer(superuser, f"grant {grant} to clinic_owner")
        assert require_rehearsed(owner_database) == []
    finally:
        administer(superuser, "drop schema dagster cascade")


def test_rehearsal_does_not_wait_for_others(sown: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked tables are reported as not tried, because nothing is wrong with them."""
    monkeypatch.setattr(rehearsal, "LOCK_TIMEOUT_SECONDS", 0.1)
    with sown.operator() as other:
        other.execute(sa.text("lock table public.active_patients in exclusive mode"))
        untried = require_rehearsed(sown)
    assert any("write active_patients" in str(each) for each in untried)
    assert require_rehearsed(sown) == []


def test_rehearsal_of_a_read_only_database_says_so(sown: Database) -> None:
    administer(sown.url, f"alter database {sown.url.database} set default_transaction_read_only = on")
    reader = Database(sown.url)
    try:
        with pytest.raises(DatabaseUnavailableError, match="default_transaction_read_only"):
            require_rehearsed(reader)
    finally:
        reader.close()


def everything(database: Database) -> dict[str, list[object]]:
    """Return the row versions of all rows of all tables."""
    with database.operator() as connection:
        names: Iterator[str] = connection.execute(
            sa.text(
                "select oid::regclass::text from pg_class where relkind = 'r'"
                " and relnamespace in ('public'::regnamespace, 'cliniko'::regnamespace)"
            )
        ).scalars()
        return {name: row_versions(connection, name) for name in list(names)}
