"""What is wrong with an organization, in words: the same for the command line and for the HTTP API."""

from cliniko_pipeline.cliniko.crawling.refusals import consequence
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.postgres.operator_tables.sync_runs import OrganizationStatus

TOLD_IN_OTHER_WORDS = {"nothing_was_rejected", "counts_agree_with_cliniko"}
"""Checks of which the tables themselves tell more."""


def problems(organization: Organization, state: OrganizationStatus) -> list[str]:
    """What an operator should look at, for one organization."""
    found: list[str] = []
    if organization.pause_reason is not None:
        found.append(
            "paused until its credentials change or"
            f" `cliniko-pipeline organizations enable {organization.id}` lets it be synced again."
            f" {organization.pause_reason}"
        )
    elif state.status == "failed" and state.error:
        found.append(f"the last sync failed. {state.error}")
    found += [
        f"does not hold: {check}"
        for check in organization.failed_checks
        if check.partition(":")[0] not in TOLD_IN_OTHER_WORDS
    ]
    if state.rejected_records:
        found.append(
            f"{state.rejected_records} records could not be read or understood and were set aside"
            " (cliniko.rejected_records has the reasons)."
        )
    if state.unidentified_records:
        found.append(
            f"the id of {state.unidentified_records} of them is not known: any stored record could be meant, so none of"
            " the same list is marked as deleted."
        )
    if state.doubtful_deletions:
        found.append(
            f"{state.doubtful_deletions} records are no longer in Cliniko, too many to be believed deleted; if it is"
            " true, run `cliniko-pipeline sync ID --full --accept-deletions`."
        )
    if state.full_readings_due:
        found.append(f"the next sync reads everything of some resources ({'; '.join(state.full_readings_due)}).")
    found += refused_fields(state)
    if state.patients_in_merge_loops:
        found.append(
            f"{state.patients_in_merge_loops} patients are merged in a loop; the lowest id stands for each loop."
        )
    return found


def refused_fields(state: OrganizationStatus) -> list[str]:
    """Say by what Cliniko refuses to sort or filter the organization's lists, and what follows from it."""
    return [f"{consequence(*each.split(' ', 1))}." for each in state.refused_fields or ()]
