"""`cliniko-pipeline status`: last sync, counts and problems of each organization."""

import dataclasses
import json
from datetime import datetime
from typing import Any

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.terminal import output_console, shown
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.postgres.operator_tables.stopped_instigators import stopped_problem
from cliniko_pipeline.postgres.operator_tables.sync_runs import OrganizationStatus, organization_status
from cliniko_pipeline.postgres.schema.identity import copy_problem
from cliniko_pipeline.problems import problems
from cliniko_pipeline.runtime import Runtime


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(*, as_json: bool) -> None:
    """Show last syncs, counts and problems."""
    with session() as runtime:
        found = statuses(runtime)
        now, machine_clock = runtime.now(), runtime.machine_clock()
        copied = copy_problem(runtime.database)
        stopped = stopped_problem(runtime.database, runtime.settings.ui_url)
    if copied is not None:
        click.echo(copied, err=True)
    if stopped is not None:
        click.echo(stopped, err=True)
    if machine_clock.is_notable:
        click.echo(f"{machine_clock}.", err=True)
    if as_json:
        click.echo(json.dumps([_as_json(organization, state) for organization, state in found], indent=2))
    elif found:
        show_statuses(found, now)
        for line in problem_lines(found):
            click.echo(line)
    else:
        click.echo("No organizations yet: `cliniko-pipeline organizations add ID --name NAME`.")


def statuses(runtime: Runtime, only: list[str] | None = None) -> list[tuple[Organization, OrganizationStatus]]:
    """Return all organizations, or those in `only`, with their statuses."""
    with runtime.database.operator() as connection:
        found = stored.organizations(connection)
    result: list[tuple[Organization, OrganizationStatus]] = []
    for organization in found:
        if only is None or organization.id in only:
            with runtime.database.organization(organization.id) as connection:
                result.append((organization, organization_status(connection)))
    return result


def show_statuses(found: list[tuple[Organization, OrganizationStatus]], now: datetime) -> None:
    """Print one row per organization. `now` is the time by the database's clock."""
    table = Table(title="Organizations", title_justify="left")
    for heading in ("Organization", "Last sync", "Verified"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Patients", "Appts", "Matched", "Unmatched", "Ambiguous", "Active", "Requests", "Waited"):
        table.add_column(heading, justify="right", no_wrap=True)
    for organization, state in found:
        table.add_row(
            shown(organization.name),
            _last_sync(organization, state),
            _age(organization.verified_at, now),
            f"{state.patients:,}",
            f"{state.appointments:,}",
            f"{state.matched:,}",
            f"{state.unmatched:,}",
            f"{state.ambiguous:,}",
            f"[bold]{state.active_patients:,}[/]",
            f"{state.requests or 0:,}",
            f"{state.seconds_waited or 0:.0f} s",
        )
    output_console().print(table)


def problem_lines(found: list[tuple[Organization, OrganizationStatus]]) -> list[str]:
    """Return one line per problem."""
    return [
        f"{organization.id}: {problem}" for organization, state in found for problem in problems(organization, state)
    ]


def _last_sync(organization: Organization, state: OrganizationStatus) -> str:
    if not organization.is_active:
        return "disabled"
    if organization.pause_reason is not None:
        return "[red]paused[/]"
    colour = {"succeeded": "green", "failed": "red"}.get(state.status or "", "yellow")
    return f"[{colour}]{state.status or 'never'}[/]"


def _age(instant: datetime | None, now: datetime) -> str:
    if instant is None:
        return "never"
    minutes = int((now - instant).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 120:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days ago"


def _as_json(organization: Organization, state: OrganizationStatus) -> dict[str, Any]:
    values = {"id": organization.id, "name": organization.name, "is_active": organization.is_active}
    values |= {"pause_reason": organization.pause_reason, "failed_checks": organization.failed_checks}
    values["verified_at"] = None if organization.verified_at is None else organization.verified_at.isoformat()
    values |= {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in dataclasses.asdict(state).items()
    }
    return values | {"problems": problems(organization, state)}
