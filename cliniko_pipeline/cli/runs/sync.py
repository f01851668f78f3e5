"""`cliniko-pipeline sync`: syncs in worker processes, with progress and a summary."""

from collections.abc import Sequence

import click

from cliniko_pipeline.cli.runs.progress import progress_display
from cliniko_pipeline.cli.runs.workers import run_in_workers
from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.status import problem_lines, show_statuses, statuses
from cliniko_pipeline.cli.terminal import printable
from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.instants import parse_instant
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.postgres.schema.identity import require_own
from cliniko_pipeline.probes import Unchanged, probe_and_note
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SyncOptions

DEFAULT_OPTIONS = SyncOptions()
PROBE_SECONDS = 600.0
"""The time for the probes of `--if-changed`."""


@click.command()
@click.argument("organization_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "all_organizations", is_flag=True, help="All organizations that are not disabled.")
@click.option(
    "--as-of", metavar="INSTANT", help="Judge activity by this instant (2026-01-31T09:30:00Z) instead of now."
)
@click.option("--full", is_flag=True, help="Read all records, and mark those deleted in Cliniko.")
@click.option(
    "--accept-deletions",
    is_flag=True,
    help="With --full, mark records as deleted even if suspiciously many are missing.",
)
@click.option(
    "--if-changed",
    is_flag=True,
    help="Ask Cliniko and the database first, and sync only the organizations that may have changed.",
)
@click.option(
    "--accept-unmatched", is_flag=True, help="Write the contact mapping even if suspiciously many matches are lost."
)
def sync(
    organization_ids: tuple[str, ...],
    *,
    all_organizations: bool,
    as_of: str | None,
    full: bool,
    accept_deletions: bool,
    if_changed: bool,
    accept_unmatched: bool,
) -> None:
    """Sync organizations, with progress.

    Reads Cliniko and updates the active patients. The Dagster UI shows each sync as a run.
    """
    if bool(organization_ids) == all_organizations:
        raise click.UsageError("Give the IDs of organizations, or --all.")
    if accept_deletions and not full:
        raise click.UsageError("--accept-deletions needs --full.")
    if if_changed and (full or as_of is not None):
        raise click.UsageError("--if-changed is not possible together with --full or --as-of.")
    options = SyncOptions(None if as_of is None else parse_instant(as_of), full, accept_deletions, accept_unmatched)
    with session() as runtime:
        require_own(runtime.database)
        runtime.machine_clock().require_allowed()
        ids = [organization.id for organization in chosen_organizations(runtime, organization_ids)]
        changed = changed_organizations(runtime, ids) if if_changed else ids
        errors = run_syncs(runtime, changed, options) if changed else {}
        report(runtime, ids, errors)
    raise SystemExit(1 if errors else 0)


def changed_organizations(runtime: Runtime, ids: Sequence[str]) -> list[str]:
    """Probe the organizations; print which are unchanged, and return the others."""
    verdicts = probe_and_note(runtime, ids, seconds=PROBE_SECONDS)
    changed: list[str] = []
    for organization_id in ids:
        if isinstance(verdicts[organization_id], Unchanged):
            click.echo(f"{printable(organization_id)}: unchanged", err=True)
        else:
            # The sync of an organization whose probe failed or was postponed waits and tries again.
            changed.append(organization_id)
    return changed


def run_syncs(runtime: Runtime, ids: Sequence[str], options: SyncOptions = DEFAULT_OPTIONS) -> dict[str, str]:
    """Sync the organizations and show progress; return one error line per failed organization."""
    click.echo(f"Syncing {len(ids)} organization{'s' if len(ids) > 1 else ''} ...", err=True)
    # The workers must not inherit open connections.
    runtime.database.close()
    return run_in_workers(ids, options, progress_display(list(ids)))


def report(runtime: Runtime, ids: Sequence[str], errors: dict[str, str]) -> None:
    """Print the summary table, the problems, and the error of each failed organization."""
    found = statuses(runtime, list(ids))
    show_statuses(found, runtime.now())
    for line in problem_lines(
        [(organization, state) for organization, state in found if organization.id not in errors]
    ):
        click.echo(line)
    for organization_id, error in errors.items():
        click.echo(f"Error: {printable(organization_id)} failed. {printable(str(error))}", err=True)


def chosen_organizations(runtime: Runtime, named: Sequence[str]) -> list[Organization]:
    """Return the organizations with these ids. Without ids, return all organizations that are not disabled.

    Raises OrganizationUnknownError for an unknown id, and ArgumentError if no organization is enabled.
    """
    with runtime.database.operator() as connection:
        if named:
            return [stored.organization(connection, name) for name in dict.fromkeys(named)]
        found = [organization for organization in stored.organizations(connection) if organization.is_active]
    if not found:
        raise ArgumentError("There is no organization to sync: `cliniko-pipeline organizations add ID --name NAME`.")
    return found
