"""`cliniko-pipeline sync`: the main job in the terminal."""

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
from cliniko_pipeline.postgres.schema.identity import require_own
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SyncOptions

DEFAULT_OPTIONS = SyncOptions()


@click.command()
@click.argument("organization_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "all_organizations", is_flag=True, help="Every organization that is not disabled.")
@click.option("--as-of", metavar="INSTANT", help="Judge by this instant (2026-01-31T09:30:00Z), not by now.")
@click.option("--full", is_flag=True, help="From the beginning; what Cliniko no longer has is marked deleted.")
@click.option("--accept-deletions", is_flag=True, help="With --full: also a suspicious share of all records.")
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
    accept_unmatched: bool,
) -> None:
    """Read organizations from Cliniko and renew their active patients, as runs that the Dagster UI shows."""
    if bool(organization_ids) == all_organizations:
        raise click.UsageError("Name organizations, or give --all.")
    if accept_deletions and not full:
        raise click.UsageError("--accept-deletions goes with --full.")
    options = SyncOptions(None if as_of is None else parse_instant(as_of), full, accept_deletions, accept_unmatched)
    with session() as runtime:
        require_own(runtime.database)
        runtime.machine_clock().require_allowed()
        ids = _chosen(runtime, organization_ids)
        errors = run_syncs(ids, options)
        report(runtime, ids, errors)
    raise SystemExit(1 if errors else 0)


def run_syncs(ids: Sequence[str], options: SyncOptions = DEFAULT_OPTIONS) -> dict[str, str]:
    """Syncs the organizations with progress; returns the errors, a line each, of those that failed."""
    click.echo(f"Syncing {len(ids)} organization{'s' if len(ids) > 1 else ''} ...", err=True)
    with progress_display(list(ids)) as display:
        return run_in_workers(ids, options, display)


def report(runtime: Runtime, ids: Sequence[str], errors: dict[str, str]) -> None:
    """The summary table, then a line for each problem, and for each organization that failed."""
    found = statuses(runtime, list(ids))
    show_statuses(found, runtime.now())
    for line in problem_lines([each for each in found if each[0].id not in errors]):
        click.echo(line)
    for organization_id, error in errors.items():
        click.echo(f"Error: {printable(organization_id)} failed. {printable(str(error))}", err=True)


def _chosen(runtime: Runtime, named: Sequence[str]) -> list[str]:
    with runtime.database.operator() as connection:
        if named:
            return [stored.organization(connection, each).id for each in dict.fromkeys(named)]
        found = [each.id for each in stored.organizations(connection) if each.is_active]
    if not found:
        raise ArgumentError("There is no organization to sync: `cliniko-pipeline organizations add ID --name NAME`.")
    return found
