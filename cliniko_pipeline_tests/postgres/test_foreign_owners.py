"""Tests of tables that other users own. The pipeline's user has the privileges that the documentation lists."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.rehearsal import rehearse, require_rehearsed
from cliniko_pipeline_tests.support.clinics import AS_OF, small_clinic
from cliniko_pipeline_tests.support.databases import administer, owned_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import opened_pipeline
from cliniko_pipeline_tests.support.schemas import (
    ACTIVE_PATIENTS_TABLE,
    application_state,
    assert_one_line,
    schema_objects,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "database.md").read_text()
APPLICATION_TABLES = ("organizations", "api_credentials", "contacts")


def documented(beginning: str, user: str) -> str:
    """Return the documentation's SQL that starts with this text, with the user's name."""
    (block,) = [each for each in re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL) if each.startswith(beginning)]
    return block.replace("PIPELINE_USER", user)


@dataclass(frozen=True)
class Owned:
    """A database as seen by the pipeline's user and by a superuser, and the owner of the application's tables."""

    database: Database
    root: URL
    application: str

    @property
    def user(self) -> str:
        return self.database.url.username or ""


@pytest.fixture
def owned(server: URL) -> Iterator[Owned]:
    application = f"application_{uuid4().hex}"
    administer(server, f"create role {application}")
    with owned_database(server) as database:
        root = server.set(database=database.url.database)
        administer(root, ACTIVE_PATIENTS_TABLE, f"alter table public.active_patients owner to {database.url.username}")
        administer(root, *(f"alter table public.{each} owner to {application}" for each in APPLICATION_TABLES))
        administer(root, documented("grant select, insert on", database.url.username or ""))
        yield Owned(database, root, application)
        administer(root, f"drop owned by {application} cascade")
    administer(server, f"drop role {application}")


def test_documented_privileges_are_enough(owned: Owned, tmp_path: Path) -> None:
    database, account = owned.database, small_clinic("alpha")
    administer(
        owned.root,
        f"insert into public.contacts (id, organization_id, cliniko_patient_id) values ('{UUID(int=1)}', 'alpha', '1')",
    )
    application = application_state(database)
    assert schema.migrate(database).changed
    assert list(map(str, rehearse(database))) == []
    schema.require_isolation(database)
    assert application_state(database) == application
    with opened_pipeline(environment(database.url, tmp_path)) as pipeline, pipeline.sandbox([account]) as sandbox:
        pipeline.add_organization("alpha", sandbox, account)
        assert pipeline.sync("alpha", AS_OF).success
        assert len(pipeline.rows("alpha", "public.active_patients")) == 1
    with database.operator() as connection:
        organizations.all_stored_credentials(connection)
        organizations.mark_validated(connection, "alpha")
    assert organizations.remove(database, "alpha") > 0


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [
        ("revoke select on public.contacts from {user}", "grant select on public.contacts to {user}"),
        ("revoke insert on public.organizations from {user}", "grant insert on public.organizations to {user}"),
        (
            "revoke all on public.api_credentials from {user}",
            "grant select, insert, update, delete on public.api_credentials to {user}",
        ),
        ("alter schema public owner to {application}", "grant create on schema public to {user}"),
        ("alter database {database} owner to {application}", "grant create on database {database} to {user}"),
        (
            "alter table public.active_patients owner to {application}",
            "alter table public.active_patients owner to {user}",
        ),
    ],
)
def test_missing_privilege_is_named_before_any_change(owned: Owned, loss: str, remedy: str) -> None:
    names = {"user": owned.user, "application": owned.application, "database": owned.root.database}
    administer(owned.root, loss.format(**names))
    superuser = Database(owned.root)
    before = schema_objects(superuser), application_state(superuser)
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(owned.database)
    assert_one_line(raised.value, remedy.format(**names), "Nothing was changed")
    assert (schema_objects(superuser), application_state(superuser)) == before
    superuser.close()
    for each in str(raised.value).split("`")[1].split("; "):
        administer(owned.root, each)
    assert schema.migrate(owned.database).changed
    assert list(map(str, rehearse(owned.database))) == []


def test_lost_privilege_on_contacts_is_for_the_database_user(owned: Owned) -> None:
    """A grant to the organization role would open every organization's contacts to all organizations."""
    schema.migrate(owned.database)
    administer(owned.root, f"revoke select on public.contacts from {owned.user}")
    with pytest.raises(DatabaseSetupError, match=f"grant select on public.contacts to {owned.user}`"):
        schema.require_current(owned.database)
    with pytest.raises(DatabaseSetupError) as rehearsed:
        require_rehearsed(owned.database)
    assert f"Run `grant select on public.contacts to {owned.user}`" in str(rehearsed.value)
    with pytest.raises(DatabaseSetupError) as synced:
        schema.require_visible_contacts(owned.database)
    for each in (rehearsed, synced):
        assert "organization role" not in str(each.value)
        assert "to cliniko_organization" not in str(each.value)


def test_pipeline_of_a_superuser_passes_to_an_owner(owned: Owned) -> None:
    superuser = Database(owned.root)
    schema.migrate(superuser)
    administer(owned.root, "comment on schema cliniko is 'earlier'")
    before = schema_objects(superuser)
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(owned.database)
    assert_one_line(raised.value, "schema cliniko", owned.user, '"Change the database user"', "Nothing was changed")
    assert "## Change the database user" in DOCUMENT
    assert schema_objects(superuser) == before
    statements = documented("-- Generates one statement", owned.user).removesuffix("\\gexec\n")
    with superuser.operator() as connection:
        for statement in connection.execute(sa.text(statements)).scalars().all():
            connection.exec_driver_sql(statement)
    superuser.close()
    assert schema.migrate(owned.database).changed
    schema.require_isolation(owned.database)
    assert list(map(str, rehearse(owned.database))) == []


def test_lost_privilege_of_the_filter_is_for_the_database_user(owned: Owned) -> None:
    grant = f"grant select on public.leads to {owned.user}"
    administer(owned.root, "create table public.leads as select id from public.contacts", grant)
    schema.migrate(owned.database, contacts_filter="id not in (select id from public.leads)")
    administer(owned.root, f"revoke select on public.leads from {owned.user}")
    with pytest.raises(DatabaseSetupError) as raised:
        require_rehearsed(owned.database)
    assert f"`{grant}`" in str(raised.value)
