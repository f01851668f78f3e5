"""Test that the rehearsal notices every broken object that a sync needs, according to the catalog.

If the rehearsal does not notice some broken objects, a real sync without these objects must succeed with the right
rows.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.postgres.engine import Database, forget_created
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.inventory import OPERATOR_TABLES
from cliniko_pipeline.postgres.schema.isolation import organization_role
from cliniko_pipeline.postgres.schema.rehearsal import require_rehearsed
from cliniko_pipeline.postgres.tables import TENANT_TABLES
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support.databases import administer, organization_role_of
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import attendee, group_appointment, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of, opened_pipeline

pytestmark = pytest.mark.slow

CLINIC = "clinic"
PEOPLE = 8
NOW = datetime.now(UTC)
STARTED = (NOW - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
TABLES = tuple(name.replace('"', "") for name in (*TENANT_TABLES, *OPERATOR_TABLES))
APPLICATION_TABLES = ("public.contacts", "public.api_credentials", "public.organizations")
NAMED_TABLES = "c.relnamespace in ('cliniko'::regnamespace, 'public'::regnamespace) and c.relname <> 'schema_version'"

BREAKS = {
    "table privileges": """
        select format('revoke %s on %s from {role}', verb, named)
        from unnest(cast(:tables as text[])) as named, unnest(array['select', 'insert', 'update', 'delete']) as verb
        where named not in (select unnest(cast(:operators as text[])))
    """,
    "other privileges": """
        select statement from (values
            ('revoke usage on schema cliniko from {role}'),
            ('revoke usage on sequence public.active_patients_id_seq from {role}'),
            (format('revoke temporary on database %I from {role}, public', current_database()))
        ) as named (statement)
        union all
        select format('revoke execute on function %s from {role}, public', oid::regprocedure)
        from pg_proc where pronamespace = 'cliniko'::regnamespace
    """,
    "the user's privileges": """
        select format('revoke %s on %s from {owner}', verb, named)
        from
            unnest(cast(:application as text[])) as named,
            unnest(array['select', 'insert', 'update', 'delete']) as verb
    """,
    "Dagster's tables": """
        select format('revoke %s on %s from {owner}', verb, oid::regclass)
        from pg_class, unnest(array['select', 'insert', 'update', 'delete']) as verb
        where relnamespace = to_regnamespace('dagster') and relkind = 'r'
        union all
        select format('revoke usage on sequence %s from {owner}', oid::regclass)
        from pg_class where relnamespace = to_regnamespace('dagster') and relkind = 'S'
        union all
        select 'revoke usage on schema dagster from {owner}'
    """,
    "functions": """
        select format('drop function %s cascade', oid::regprocedure)
        from pg_proc where pronamespace = 'cliniko'::regnamespace
    """,
    "triggers": f"""
        select format(break, tgrelid::regclass, tgname)
        from pg_trigger
        join pg_class as c on c.oid = tgrelid
        cross join unnest(array['drop trigger %2$I on %1$s', 'alter table %1$s disable trigger %2$I']) as break
        where not tgisinternal and {NAMED_TABLES}
    """,
    "unique indexes": f"""
        select case
            when pg_constraint.oid is null then format('drop index %s', indexrelid::regclass)
            else format('alter table %s drop constraint %I cascade', pg_index.indrelid::regclass, conname)
        end
        from pg_index
        join pg_class as c on c.oid = indrelid
        left join pg_constraint on pg_constraint.conindid = indexrelid and contype in ('p', 'u')
        where indisunique and {NAMED_TABLES}
    """,
    "policies": """
        select format('drop policy %I on %I.%I', policyname, schemaname, tablename) from pg_policies
        where schemaname in ('cliniko', 'public')
        union all
        select format('alter table %s %s row level security', named, change)
        from unnest(cast(:tables as text[])) as named, unnest(array['no force', 'disable']) as change
        where named not in (select unnest(cast(:operators as text[])))
    """,
    **{
        f"columns of {table}": f"""
            select format('alter table {table} drop column %I cascade', attname)
            from pg_attribute where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped
        """
        for table in (*TABLES, *APPLICATION_TABLES)
    },
}
"""Queries of the catalog that return statements, each of which breaks one thing."""


class BrokenDatabase(Database):
    """A database in which everything happens in one transaction, together with the statement that broke it."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.connection = self._engine.connect()
        self._is_kept = False

    @contextmanager
    def operator(self) -> Generator[Connection]:
        with self._translated(), self._undone():
            yield self.connection

    @contextmanager
    def organization(
        self,
        organization_id: str,
        *,
        is_resumable: bool = False,  # noqa: ARG002 (the base's)
    ) -> Generator[Connection]:
        with self._translated(is_in_context=True), self._undone():
            self.connection.execute(
                sa.text(
                    "select set_config('role', :role, true), set_config('app.organization_id', :organization_id, true)"
                ),
                {"organization_id": organization_id, "role": organization_role(self.connection)},
            )
            yield self.connection

    @contextmanager
    def broken(self, statement: str) -> Generator[None]:
        """Execute the statement, and undo it at the end of the block."""
        with self._undone():
            self.connection.exec_driver_sql(statement)
            yield

    @contextmanager
    def _undone(self) -> Generator[None]:
        savepoint = self.connection.begin_nested()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if is_done and self._is_kept:
                savepoint.commit()
            else:
                savepoint.rollback()
            forget_created(self.connection)

    @contextmanager
    def kept(self) -> Generator[None]:
        """Undo successful transactions only at the end of the block, not one by one."""
        with self._undone():
            self._is_kept = True
            try:
                yield
            finally:
                self._is_kept = False

    def row_counts(self) -> list[int]:
        """Return the number of rows of each table, for all organizations."""
        with self._undone():
            for table in TENANT_TABLES:
                self.connection.exec_driver_sql(f"alter table {table} no force row level security")
            counts = ", ".join(f"(select count(*) from {table})" for table in (*TABLES, "public.contacts"))
            return list(self.connection.exec_driver_sql(f"select {counts}").one())

    def close(self) -> None:
        self.connection.close()
        super().close()


@dataclass(frozen=True)
class Prepared:
    """A synced database whose owner is not a superuser."""

    environ: Mapping[str, str]
    url: URL
    account: Account


def account() -> Account:
    made = Account(CLINIC, "au4", "breaks-au4")
    made.put("group_appointments", group_appointment("200", STARTED))
    for number in range(1, PEOPLE + 1):
        put_person(made, number)
    return made


def put_person(made: Account, number: int) -> None:
    changed = {"updated_at": STARTED}
    made.put("patients", patient(str(number), "Pat", f"Number {number}", **changed))
    made.put("individual_appointments", individual_appointment(f"1{number}", str(number), STARTED, **changed))
    made.put("attendees", attendee(f"30{number}", "200", str(number), **changed))


@pytest.fixture(scope="module")
def prepared(server_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    # The role's name is unique, because roles belong to the server, which other processes use too.
    name, password = f"broken_{uuid4().hex}", uuid4().hex
    administer(
        server_url,
        f"create role {name} login createrole createdb password '{password}'",
        f"create database {name} owner {name}",
    )
    url = server_url.set(username=name, password=password, database=name)
    environ = environment(url, tmp_path_factory.mktemp("breaks"))
    served = account()
    database = Database(url)
    schema.migrate(database, create_application_tables=True)
    database.close()
    with opened_pipeline(environ) as pipeline, pipeline.sandbox([served]) as sandbox:
        pipeline.add_contacts(
            [
                {"id": UUID(int=number), "organization_id": CLINIC, "name": f"Pat Number {number}"}
                for number in range(1, PEOPLE + 2)
            ]
        )
        pipeline.add_organization(CLINIC, sandbox, served)
        sync(pipeline, people=PEOPLE)
        open_instance(pipeline.runtime).dispose()
    yield Prepared(environ, url, served)
    role = organization_role_of(server_url.set(database=name))
    administer(server_url, f"drop database {name} with (force)", f"drop role {role}", f"drop role {name}")


def sync(pipeline: PipelineUnderTest, *, people: int) -> None:
    result = pipeline.sync(CLINIC, full=True, log_level="CRITICAL")
    assert result.success, errors_of(result)
    rows = pipeline.active_patients(CLINIC)
    assert {id_: row["total_appointment_count"] for id_, row in rows.items()} == {
        UUID(int=number): 2 for number in range(1, people + 1)
    }


def finding(database: Database) -> str | None:
    """Return the problem that `doctor` would report, or None."""
    try:
        schema.require_current(database)
        schema.require_isolation(database)
        schema.require_visible_contacts(database)
        require_rehearsed(database)
    except ClinikoPipelineError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", BREAKS)
def test_rehearsal_notices_what_a_sync_needs(kind: str, prepared: Prepared, server_url: URL, tmp_path: Path) -> None:
    database = BrokenDatabase(prepared.url)
    try:
        assert finding(database) is None
        counts = database.row_counts()
        unnoticed: list[str] = []
        for statement in statements(database.connection, kind):
            with database.broken(statement):
                found = finding(database)
                if found is None:
                    unnoticed.append(statement)
                elif "cliniko-pipeline migrate" in found:
                    assert_migration_helps(database, statement)
                if "revoke select" not in statement:
                    assert database.row_counts() == counts, statement
        assert finding(database) is None
    finally:
        database.close()
    if unnoticed:
        assert_syncs_without(prepared, server_url, unnoticed)


def assert_migration_helps(database: BrokenDatabase, statement: str) -> None:
    """Migrate. Assert that the remaining message, if any, no longer advises only `migrate`."""
    with database.kept():
        try:
            schema.migrate(database)
        except ClinikoPipelineError as error:
            left: str | None = str(error)
        else:
            left = finding(database)
    advice, _, _ = (left or "").partition("cliniko-pipeline migrate")
    assert advice == (left or "") or "`drop schema cliniko cascade`" in advice, (statement, left)


def test_rehearsal_notices_a_lost_membership(prepared: Prepared, server_url: URL) -> None:
    role = organization_role_of(prepared.url)
    database = Database(prepared.url)
    try:
        assert finding(database) is None
        administer(server_url, f"revoke {role} from {prepared.url.username} cascade")
        assert role in (finding(database) or "")
        administer(server_url, f"grant {role} to {prepared.url.username} with admin option")
        assert finding(database) is None
    finally:
        database.close()


def statements(connection: Connection, kind: str) -> list[str]:
    found = connection.execute(
        sa.text(BREAKS[kind]),
        {"tables": list(TABLES), "operators": list(OPERATOR_TABLES), "application": list(APPLICATION_TABLES)},
    ).scalars()
    names = {"role": organization_role(connection), "owner": connection.engine.url.username}
    made = [each.format(**names) for each in found]
    assert made
    return made


def assert_syncs_without(prepared: Prepared, server_url: URL, unnoticed: list[str]) -> None:
    """Sync a copy of the database without the objects whose loss was not noticed. Assert that the rows are right."""
    name = f"broken_{uuid4().hex}"
    administer(server_url, f"create database {name} template {prepared.url.database} owner {prepared.url.username}")
    url = prepared.url.set(database=name)
    changed = account()
    put_person(changed, PEOPLE + 1)
    try:
        database = Database(url)
        schema.migrate(database, adopts=True)
        database.close()
        role, copied = organization_role_of(prepared.url), organization_role_of(url)
        administer(url, *(each.replace(role, copied) for each in unnoticed))
        environ = prepared.environ | {"DATABASE_URL": url.render_as_string(hide_password=False)}
        with opened_pipeline(environ) as pipeline, pipeline.sandbox([changed]):
            sync(pipeline, people=PEOPLE + 1)
    finally:
        role = organization_role_of(server_url.set(database=name))
        administer(server_url, f"drop database {name} with (force)", f"drop role {role}")
