"""Tests of policies of the application that hide its rows from the pipeline, which must not treat them as deleted."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, NoOrganizationsError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline_tests.support.clinics import AS_OF, small_clinic
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of, opened_pipeline

CLINIC = "clinic"
TENANTS = "using (organization_id = current_setting('app.current_organization_id', true))"
REMEDY = "create policy cliniko_pipeline on public.contacts for select to clinic_owner using (true)"
FORCED = "alter table public.contacts enable row level security, force row level security"
HIDDEN = (FORCED, f"create policy tenants on public.contacts {TENANTS}")
RESTRICTED = (*HIDDEN, "create policy no_more on public.contacts as restrictive using (name <> 'Nobody')")
OF_A_SUPERUSER = "alter table public.contacts owner to {superuser}"


@pytest.fixture
def superuser_url(fresh_server_url: URL, owner_database: Database) -> Iterator[URL]:
    """Yield the superuser's URL of a new database. Its owner clinic_owner is not a superuser."""
    name = f"test_{uuid4().hex}"
    administer(fresh_server_url, f"create database {name} owner {owner_database.url.username}")
    yield fresh_server_url.set(database=name)
    administer(fresh_server_url, "alter role clinic_owner nobypassrls", f"drop database {name} with (force)")


@pytest.fixture
def clinic(superuser_url: URL, owner_database: Database, tmp_path: Path) -> Iterator[PipelineUnderTest]:
    """Yield a clinic with one active patient, which was synced once as clinic_owner. Its sandbox keeps running."""
    url = owner_database.url.set(database=superuser_url.database)
    database = Database(url)
    schema.migrate(database, create_application_tables=True)
    database.close()
    account = small_clinic(CLINIC)
    with opened_pipeline(environment(url, tmp_path)) as pipeline, pipeline.sandbox([account]) as sandbox:
        pipeline.add_organization(CLINIC, sandbox, account)
        pipeline.add_contacts([{"id": uuid4(), "organization_id": CLINIC, "cliniko_patient_id": "1"}])
        result = pipeline.sync(CLINIC, AS_OF)
        assert result.success, errors_of(result)
        assert len(pipeline.active_patients(CLINIC)) == 1
        yield pipeline


def visible(pipeline: PipelineUnderTest) -> None:
    """Sync incrementally and fully. Assert that both syncs succeed and change nothing."""
    before = pipeline.contents(CLINIC)
    for full in (False, True):
        result = pipeline.sync(CLINIC, AS_OF, full=full)
        assert result.success, errors_of(result)
    assert pipeline.contents(CLINIC) == before
    schema.require_visible_contacts(pipeline.database)


def hidden(pipeline: PipelineUnderTest) -> str:
    """Sync. Assert that the sync fails and leaves the rows that the application reads unchanged. Return the error."""
    tables = ("cliniko.contact_mapping", "public.active_patients")
    before = [pipeline.rows(CLINIC, table) for table in tables]
    for full in (False, True):
        (failed,) = errors_of(pipeline.sync(CLINIC, AS_OF, full=full))
        assert [pipeline.rows(CLINIC, table) for table in tables] == before
    with pytest.raises(DatabaseSetupError) as refused:
        schema.require_visible_contacts(pipeline.database)
    assert str(refused.value) in failed
    return str(refused.value)


@pytest.mark.parametrize(
    ("statements", "remedies"),
    [
        (HIDDEN, [REMEDY, "alter role clinic_owner bypassrls"]),
        (RESTRICTED, ["alter table public.contacts no force row level security", "alter role clinic_owner bypassrls"]),
        (
            (*RESTRICTED, OF_A_SUPERUSER, "grant select on public.contacts to clinic_owner"),
            ["alter role clinic_owner bypassrls"],
        ),
    ],
    ids=["forced", "forced and restrictive", "of another owner"],
)
def test_hidden_contacts_stop_a_sync_until_any_remedy(
    clinic: PipelineUnderTest, superuser_url: URL, statements: tuple[str, ...], remedies: list[str]
) -> None:
    administer(superuser_url, *(each.format(superuser=superuser_url.username) for each in statements))
    for remedy in remedies:
        error = hidden(clinic)
        assert "public.contacts" in error
        assert all(f"`{each}`" in error for each in remedies)
        administer(superuser_url, remedy)
        visible(clinic)
        administer(
            superuser_url,
            "drop policy if exists cliniko_pipeline on public.contacts",
            "alter table public.contacts force row level security",
            "alter role clinic_owner nobypassrls",
        )


def test_contacts_under_unforced_policies_are_visible_to_the_owner(
    clinic: PipelineUnderTest, superuser_url: URL
) -> None:
    administer(superuser_url, *HIDDEN, "alter table public.contacts no force row level security")
    visible(clinic)


def test_view_over_hidden_contacts_stops_a_sync(clinic: PipelineUnderTest, superuser_url: URL) -> None:
    administer(
        superuser_url,
        *HIDDEN,
        "alter table public.contacts rename to people",
        "create view public.contacts as select * from public.people",
        "alter view public.contacts owner to clinic_owner",
    )
    assert '"people"' in hidden(clinic)


@pytest.mark.parametrize("remedy", ["policy", "bypassrls", "none"])
def test_hidden_credentials_are_an_alarm_until_the_remedy(
    clinic: PipelineUnderTest, superuser_url: URL, remedy: str
) -> None:
    administer(
        superuser_url,
        "alter table public.api_credentials enable row level security, force row level security",
        f"create policy tenants on public.api_credentials {TENANTS}",
    )
    with pytest.raises(NoOrganizationsError) as found, clinic.database.operator() as connection:
        organizations.organizations(connection)
    with pytest.raises(NoOrganizationsError), clinic.database.operator() as connection:
        organizations.organization(connection, CLINIC)
    if remedy == "none":
        organizations.remove(clinic.database, CLINIC)
        with clinic.database.operator() as connection:
            assert organizations.organizations(connection) == []
        return
    _, by_policy, _, by_role, _ = str(found.value).split("`")
    administer(superuser_url, by_policy if remedy == "policy" else by_role)
    with clinic.database.operator() as connection:
        assert organizations.organization(connection, CLINIC).is_active
