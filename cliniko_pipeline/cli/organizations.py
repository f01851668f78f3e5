"""`cliniko-pipeline organizations`: organizations, their credentials and schedules."""

import sys
from datetime import time
from urllib.parse import urlsplit

import click
from rich.table import Table

from cliniko_pipeline.cli.session import CHECK_ATTEMPTS, session
from cliniko_pipeline.cli.terminal import output_console, printable, shown, utc_text
from cliniko_pipeline.cliniko.shards import resolve_api_url, shard_of
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.errors import CredentialsFormatError
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.schema.rehearsal import rehearse_addition
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.settings import time_of_day
from cliniko_pipeline.time_zones import iana_name

MAX_KEY_LENGTH = 4096


@click.group()
def organizations() -> None:
    """Manage organizations, credentials and schedules."""


@organizations.command()
@click.argument("organization_id", metavar="ID")
@click.option("--name", required=True, help="Name to store unless the application has stored a name.")
@click.option("--api-url", help="Such as https://api.au4.cliniko.com/v1. Needed if the key has no shard suffix.")
@click.option("--no-validate", is_flag=True, help="Store the key without checking it against Cliniko.")
def add(organization_id: str, name: str, api_url: str | None, *, no_validate: bool) -> None:
    """Store an organization's Cliniko API key, encrypted. The key is read from standard input or a hidden prompt."""
    if not organization_id.strip() or not organization_id.isprintable():
        raise click.BadParameter("must be printable and not blank.", param_hint="ID")
    with session() as runtime:
        # Everything else is checked before the operator must enter the key.
        vault = runtime.vault
        rehearse_addition(runtime.database, organization_id, name)
        credentials = _with_location(ClinikoCredentials(_read_api_key(), None, api_url), runtime.settings.allowed_hosts)
        with runtime.client_for(organization_id, credentials, max_attempts=CHECK_ATTEMPTS) as client:
            if not no_validate:
                client.validate()
            found = None if no_validate else client.time_zone()
        with runtime.database.operator() as connection:
            stored.save(connection, organization_id, name, vault.encrypt(credentials), validated=not no_validate)
            zone = scheduling.take_time_zone(connection, organization_id, found)
    click.echo(f"Stored the credentials of '{organization_id}'{'' if no_validate else '; Cliniko accepts them'}.")
    click.echo(_full_sync_zone(organization_id, zone))


@organizations.command(name="list")
def list_() -> None:
    """Show the organizations that have Cliniko credentials."""
    with session() as runtime, runtime.database.operator() as connection:
        found = stored.organizations(connection)
        schedules = {schedule.organization_id: schedule for schedule in scheduling.schedulings(connection)}
    table = Table("ID", "Name", "Active", "Key last accepted", "Schedule")
    for organization in found:
        state = "disabled" if not organization.is_active else "paused" if organization.pause_reason else "yes"
        table.add_row(
            shown(organization.id),
            shown(organization.name),
            state,
            utc_text(organization.last_validated_at),
            _schedule(schedules[organization.id]),
        )
    if found:
        output_console().print(table)
    else:
        click.echo("No organizations yet: `cliniko-pipeline organizations add ID --name NAME`.")


@organizations.command()
@click.argument("organization_id", metavar="ID")
def validate(organization_id: str) -> None:
    """Check the stored API key against Cliniko."""
    with session() as runtime:
        with runtime.client(organization_id, max_attempts=CHECK_ATTEMPTS) as client:
            client.validate()
            found = client.time_zone()
        with runtime.database.operator() as connection:
            stored.mark_validated(connection, organization_id)
            zone = scheduling.take_time_zone(connection, organization_id, found)
    click.echo(f"Cliniko accepts the credentials of '{organization_id}'.")
    click.echo(_full_sync_zone(organization_id, zone))


@organizations.command()
@click.argument("organization_id", metavar="ID")
def disable(organization_id: str) -> None:
    """Stop syncing an organization. Its data is kept."""
    with session() as runtime, runtime.database.operator() as connection:
        stored.set_active(connection, organization_id, active=False)
    click.echo(f"Disabled '{organization_id}'.")


@organizations.command()
@click.argument("organization_id", metavar="[ID]", required=False)
@click.option("--paused", "all_paused", is_flag=True, help="Resume all paused organizations. Fix the cause first.")
def enable(organization_id: str | None, *, all_paused: bool) -> None:
    """Resume syncs of a disabled or paused organization."""
    if (organization_id is not None) == all_paused:
        raise click.UsageError("Give one ID, or --paused for all paused organizations.")
    with session() as runtime, runtime.database.operator() as connection:
        if organization_id is not None:
            stored.set_active(connection, organization_id, active=True)
        ended = scheduling.end_pause(connection, organization_id)
    click.echo(f"Resumed {ended} paused organizations." if organization_id is None else f"Enabled '{organization_id}'.")


class _TimeOfDay(click.ParamType[time]):
    name = "HH:MM"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> time:
        try:
            return time_of_day(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


@organizations.command()
@click.argument("organization_id", metavar="ID")
@click.option("--every", "minutes", type=click.IntRange(1, 1440), metavar="MINUTES", help="Minutes between syncs.")
@click.option("--full-at", type=_TimeOfDay(), metavar="HH:MM", help="Time of the daily full sync.")
@click.option("--time-zone", "zone", metavar="NAME", help="Time zone of full syncs, such as Australia/Sydney.")
@click.option("--on/--off", "is_on", default=None, help="Whether scheduled syncs run.")
@click.option("--default", "as_settings", is_flag=True, help="Follow the settings, but keep the time zone.")
def schedule(
    organization_id: str,
    minutes: int | None,
    full_at: time | None,
    zone: str | None,
    *,
    is_on: bool | None,
    as_settings: bool,
) -> None:
    """Give an organization its own schedule."""
    own = (minutes, full_at, zone, is_on) != (None, None, None, None)
    if own == as_settings:
        raise click.UsageError(
            "Give --default alone, or at least one of --every, --full-at, --time-zone, --on and --off."
        )
    name = iana_name(zone)
    if zone is not None and name is None:
        raise click.BadParameter("not an IANA time zone such as Australia/Sydney.", param_hint="--time-zone")
    with session() as runtime, runtime.database.operator() as connection:
        stored.organization(connection, organization_id)
        if as_settings:
            scheduling.use_settings(connection, organization_id)
        else:
            scheduling.set_schedule(
                connection,
                organization_id,
                is_on=is_on,
                sync_every_minutes=minutes,
                full_sync_at=full_at,
                time_zone=name,
            )
    click.echo(f"The schedule of '{organization_id}' is set; `cliniko-pipeline organizations list` shows it.")


@organizations.command()
@click.argument("organization_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Skip the confirmation.")
def remove(organization_id: str, *, yes: bool) -> None:
    """Delete an organization's credentials and synced data."""
    with session() as runtime:
        if not yes:
            click.confirm(
                f"Delete the credentials of '{organization_id}'{_name_of(runtime, organization_id)} and all its synced"
                " data?",
                abort=True,
            )
        rows = stored.remove(runtime.database, organization_id)
    click.echo(f"Removed '{organization_id}': its credentials and {rows} rows. Its contacts were not touched.")


def _with_location(credentials: ClinikoCredentials, allowed_hosts: frozenset[str]) -> ClinikoCredentials:
    """Add the region and API URL, for other programs that read the credentials but cannot derive these."""
    key = credentials.api_key
    api_url = resolve_api_url(api_key=key, region=None, api_url=credentials.api_url, allowed_hosts=allowed_hosts)
    host = urlsplit(api_url).hostname or ""
    if host.endswith(".cliniko.com"):
        return ClinikoCredentials(key, host.split(".")[1], api_url)
    try:
        return ClinikoCredentials(key, shard_of(key), api_url)
    except CredentialsFormatError:
        return ClinikoCredentials(key, None, api_url)


def _schedule(schedule: Scheduling) -> str:
    if not schedule.is_on:
        return "off"
    own = [
        *([f"every {schedule.sync_every_minutes} min"] if schedule.sync_every_minutes else []),
        *([f"full at {schedule.full_sync_at:%H:%M}"] if schedule.full_sync_at else []),
    ]
    return f"{', '.join(own) or 'default'} ({schedule.time_zone or 'UTC'})"


def _full_sync_zone(organization_id: str, zone: str | None) -> str:
    if zone is not None:
        return f"Nightly full syncs use the time zone {zone}."
    return (
        "Nightly full syncs use UTC, because no time zone is known. Set one with"
        f" `cliniko-pipeline organizations schedule {organization_id} --time-zone NAME`."
    )


def _name_of(runtime: Runtime, organization_id: str) -> str:
    """Return the organization's name in parentheses, or nothing if it has no credentials."""
    with runtime.database.operator() as connection:
        names = {organization.id: organization.name for organization in stored.organizations(connection)}
    return f" ({printable(names[organization_id])})" if organization_id in names else ""


def _read_api_key() -> str:
    if sys.stdin.isatty():
        return click.prompt("Cliniko API key", hide_input=True)
    key = sys.stdin.readline(MAX_KEY_LENGTH).strip()
    if not key:
        raise CredentialsFormatError(
            "There is no API key on standard input. Pipe it in, or run the command in a terminal."
        )
    return key
