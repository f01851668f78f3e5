"""The problems of an organization, in words, for the command line and the HTTP API."""

from cliniko_pipeline.cliniko.crawling.refusals import consequence
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.postgres.operator_tables.sync_runs import OrganizationStatus

REPORTED_IN_DETAIL = {"nothing_was_rejected", "counts_agree_with_cliniko"}
"""Asset checks that are left out, because more detailed problems report their failures."""


def problems(organization: Organization, state: OrganizationStatus) -> list[str]:
    """Return what an operator should look at, most urgent first."""
    found: list[str] = []
    if organization.pause_reason is not None:
        found.append(
            "paused until its credentials change or"
            f" `cliniko-pipeline organizations enable {organization.id}` resumes it."
            f" {organization.pause_reason}"
        )
    elif state.status == "failed" and state.error:
        found.append(f"the last sync failed. {state.error}")
    found += [
        f"failed check: {check}"
        for check in organization.failed_checks
        if check.partition(":")[0] not in REPORTED_IN_DETAIL
    ]
    if state.rejected_records:
        found.append(
            f"{state.rejected_records} records are rejected: they could not be read or understood"
            " (cliniko.rejected_records has the reasons)."
        )
    if state.unidentified_records:
        found.append(
            f"the id of {state.unidentified_records} rejected records is not known, so no record of the same list is"
            " marked as deleted."
        )
    if state.doubtful_deletions:
        found.append(
            f"{state.doubtful_deletions} records are no longer in Cliniko, too many to be marked as deleted without"
            " confirmation. If they were deleted, run"
            f" `cliniko-pipeline sync {organization.id} --full --accept-deletions`."
        )
    if state.full_readings_due:
        found.append(f"the next sync reads all records of some resources ({'; '.join(state.full_readings_due)}).")
    found += refused_fields(state)
    if state.patients_in_merge_loops:
        found.append(
            f"{state.patients_in_merge_loops} patients are merged in a loop; the patient with the lowest id represents"
            " the loop."
        )
    return found


def refused_fields(state: OrganizationStatus) -> list[str]:
    """Return the consequence of each sort or filter field that Cliniko refuses."""
    return [f"{consequence(*refused.split(' ', 1))}." for refused in state.refused_fields or ()]
