"""Routes of organizations, with freshness, counts, problems, and patients without a contact."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field

from cliniko_pipeline.api.gate import ReadableOrganization, Reader, RuntimeDependency
from cliniko_pipeline.api.problems import documented
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling
from cliniko_pipeline.postgres.operator_tables.sync_runs import organization_status
from cliniko_pipeline.postgres.reads import people
from cliniko_pipeline.postgres.reads.people import WithoutContact
from cliniko_pipeline.postgres.schema.identity import copy_problem
from cliniko_pipeline.problems import problems

router = APIRouter(prefix="/v1/organizations", tags=["organizations"])


class OrganizationSummary(BaseModel):
    """An organization and the state of its syncs."""

    id: str = Field(examples=["surf-rehab"])
    name: str = Field(examples=["Surf Rehab"])
    is_active: bool = Field(description="Whether the organization is enabled. Disabled organizations are not synced.")
    is_paused: bool = Field(description="Whether syncs are paused until the credentials change.")
    last_success_at: AwareDatetime | None
    verified_at: AwareDatetime | None = Field(description="When a sync or a probe last found the stored rows right.")
    failures: int = Field(examples=[0], description="Consecutive failed syncs.")
    failed_checks: list[str]


class OrganizationsPage(BaseModel):
    """The organizations that the token may access, ordered by id."""

    items: list[OrganizationSummary]
    next_cursor: str | None = Field(description="Cursor of the next page, or null on the last page.")


class OrganizationCounts(BaseModel):
    """Numbers of stored records, without those deleted in Cliniko."""

    patients: int
    appointments: int = Field(description="Individual and group appointments.")
    attendees: int = Field(description="Attendees of individual and group appointments.")
    matched: int = Field(description="People with a contact.")
    unmatched: int
    ambiguous: int = Field(description="People with more than one possible contact.")
    active_patients: int
    rejected_records: int = Field(description="Records that could not be understood.")


class OrganizationDetails(BaseModel):
    """An organization with its counts and problems."""

    id: str = Field(examples=["surf-rehab"])
    name: str = Field(examples=["Surf Rehab"])
    is_active: bool
    last_sync_id: str | None
    last_sync_status: str | None = Field(examples=["succeeded"])
    last_success_at: AwareDatetime | None
    verified_at: AwareDatetime | None = Field(description="When a sync or a probe last found the stored rows right.")
    age_seconds: float | None = Field(description="Time since `verified_at`.", examples=[1260.5])
    counts: OrganizationCounts
    problems: list[str] = Field(description="Problems that need attention.", examples=[[]])


class Person(BaseModel):
    """A patient without a contact."""

    patient_id: str = Field(examples=["1234567890123"], description="Cliniko's id of the patient.")
    status: WithoutContact
    candidate_count: int | None = Field(description="Possible contacts of an ambiguous patient.", examples=[2])


class PeoplePage(BaseModel):
    """Patients without a contact, ordered by id."""

    items: list[Person]
    next_cursor: str | None = Field(description="Cursor of the next page, or null on the last page.")


@router.get("", responses=documented(401, 403, 422, 429, 503))
def list_organizations(
    runtime: RuntimeDependency,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    cursor: Annotated[str | None, Query(max_length=500, pattern=r"^[^\x00]*$")] = None,
) -> OrganizationsPage:
    """List the organizations that have Cliniko credentials and that the token may access, ordered by id."""
    with runtime.database.operator() as connection:
        states = {state.organization_id: state for state in scheduling.schedulings(connection)}
        found = [row for row in organizations.organizations(connection) if principal.sees(row.id)]
    found = sorted((row for row in found if cursor is None or row.id > cursor), key=lambda row: row.id)
    items = [
        OrganizationSummary(
            id=row.id,
            name=row.name,
            is_active=row.is_active,
            is_paused=row.pause_reason is not None,
            last_success_at=states[row.id].succeeded_at if row.id in states else None,
            verified_at=row.verified_at,
            failures=states[row.id].failures if row.id in states else 0,
            failed_checks=row.failed_checks,
        )
        for row in found[:limit]
    ]
    return OrganizationsPage(items=items, next_cursor=items[-1].id if len(found) > limit else None)


@router.get("/{organization_id}", responses=documented(401, 403, 404, 422, 429, 503))
def get_organization(runtime: RuntimeDependency, organization: ReadableOrganization) -> OrganizationDetails:
    """Return the organization's freshness, counts and problems."""
    with runtime.database.organization(organization.id) as connection:
        state = organization_status(connection)
    verified, copied = organization.verified_at, copy_problem(runtime.database)
    return OrganizationDetails(
        id=organization.id,
        name=organization.name,
        is_active=organization.is_active,
        last_sync_id=state.run_id,
        last_sync_status=state.status,
        last_success_at=state.last_success_at,
        verified_at=verified,
        age_seconds=None if verified is None else round((runtime.now() - verified).total_seconds(), 1),
        counts=OrganizationCounts(
            patients=state.patients,
            appointments=state.appointments,
            attendees=state.attendees,
            matched=state.matched,
            unmatched=state.unmatched,
            ambiguous=state.ambiguous,
            active_patients=state.active_patients,
            rejected_records=state.rejected_records,
        ),
        problems=[*([] if copied is None else [copied]), *problems(organization, state)],
    )


@router.get("/{organization_id}/people-without-contact", responses=documented(401, 403, 404, 422, 429, 503))
def list_people_without_contact(
    runtime: RuntimeDependency,
    organization: ReadableOrganization,
    status: WithoutContact = WithoutContact.UNMATCHED,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=100, pattern=r"^[^\x00]*$")] = None,
) -> PeoplePage:
    """List unmatched or ambiguous patients, ordered by id."""
    with runtime.database.organization(organization.id) as connection:
        found = people.without_contact(connection, status, after=cursor, limit=limit + 1)
    items = [
        Person(patient_id=person.patient_id, status=person.status, candidate_count=person.candidate_count)
        for person in found[:limit]
    ]
    return PeoplePage(items=items, next_cursor=items[-1].patient_id if len(found) > limit else None)
