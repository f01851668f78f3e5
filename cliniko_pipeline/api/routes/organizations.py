"""Organizations: how fresh, how much, and what is wrong; and who of their patients has no contact."""

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
    """An organization, and whether it is well."""

    id: str = Field(examples=["surf-rehab"])
    name: str = Field(examples=["Surf Rehab"])
    is_active: bool = Field(description="False: disabled, not synced.")
    is_paused: bool = Field(description="Not synced until its credentials change.")
    last_success_at: AwareDatetime | None
    failures: int = Field(examples=[0], description="How many syncs in a row have failed.")
    failed_checks: list[str]


class OrganizationsPage(BaseModel):
    """The organizations that the token opens, by id."""

    items: list[OrganizationSummary]
    next_cursor: str | None = Field(description="For the next page; none after the last.")


class OrganizationCounts(BaseModel):
    """What is stored of it. Of Cliniko's records, those that Cliniko still has."""

    patients: int
    appointments: int = Field(description="Individual and group appointments.")
    attendees: int = Field(description="Of individual and of group appointments.")
    matched: int = Field(description="People with a contact.")
    unmatched: int
    ambiguous: int = Field(description="People for whom more than one contact could be meant.")
    active_patients: int
    rejected_records: int = Field(description="Set aside, since they could not be understood.")


class OrganizationStanding(BaseModel):
    """Where an organization stands."""

    id: str = Field(examples=["surf-rehab"])
    name: str = Field(examples=["Surf Rehab"])
    is_active: bool
    last_sync_id: str | None
    last_sync_status: str | None = Field(examples=["succeeded"])
    last_success_at: AwareDatetime | None
    age_seconds: float | None = Field(description="How long ago the last sync that succeeded ended.", examples=[1260.5])
    counts: OrganizationCounts
    problems: list[str] = Field(description="What somebody should look at, in words.", examples=[[]])


class Person(BaseModel):
    """A patient without a contact."""

    patient_id: str = Field(examples=["1234567890123"], description="In Cliniko.")
    status: WithoutContact
    candidate_count: int | None = Field(description="How many contacts an ambiguous one could be.", examples=[2])


class PeoplePage(BaseModel):
    """Patients without a contact, by id."""

    items: list[Person]
    next_cursor: str | None = Field(description="For the next page; none after the last.")


@router.get("", responses=documented(401, 403, 422, 429, 503))
def list_organizations(
    runtime: RuntimeDependency,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    cursor: Annotated[str | None, Query(max_length=500, pattern=r"^[^\x00]*$")] = None,
) -> OrganizationsPage:
    """The organizations that the token opens, those that have Cliniko credentials."""
    with runtime.database.operator() as connection:
        states = {each.organization_id: each for each in scheduling.schedulings(connection)}
        found = [each for each in organizations.organizations(connection) if principal.sees(each.id)]
    found = sorted((each for each in found if cursor is None or each.id > cursor), key=lambda each: each.id)
    items = [
        OrganizationSummary(
            id=each.id,
            name=each.name,
            is_active=each.is_active,
            is_paused=each.pause_reason is not None,
            last_success_at=states[each.id].succeeded_at if each.id in states else None,
            failures=states[each.id].failures if each.id in states else 0,
            failed_checks=each.failed_checks,
        )
        for each in found[:limit]
    ]
    return OrganizationsPage(items=items, next_cursor=items[-1].id if len(found) > limit else None)


@router.get("/{organization_id}", responses=documented(401, 403, 404, 422, 429, 503))
def get_organization(runtime: RuntimeDependency, organization: ReadableOrganization) -> OrganizationStanding:
    """How fresh it is, what is stored of it, and what is wrong."""
    with runtime.database.organization(organization.id) as connection:
        state = organization_status(connection)
    last, copied = state.last_success_at, copy_problem(runtime.database)
    return OrganizationStanding(
        id=organization.id,
        name=organization.name,
        is_active=organization.is_active,
        last_sync_id=state.run_id,
        last_sync_status=state.status,
        last_success_at=last,
        age_seconds=None if last is None else round((runtime.now() - last).total_seconds(), 1),
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
    """The patients that no contact could be found for, or more than one."""
    with runtime.database.organization(organization.id) as connection:
        found = people.without_contact(connection, status, after=cursor, limit=limit + 1)
    items = [
        Person(patient_id=each.patient_id, status=each.status, candidate_count=each.candidate_count)
        for each in found[:limit]
    ]
    return PeoplePage(items=items, next_cursor=items[-1].patient_id if len(found) > limit else None)
