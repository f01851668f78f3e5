"""`cliniko-pipeline organizations`: which clinics are synced, and their credentials."""

import sys
from datetime import time
from urllib.parse import urlsplit

import click
from rich.table import Table

from cliniko_pipeline.cli.session import CHECK_ATTEMPTS, session
from cliniko_pipeline.cli.status import output_console
from cliniko_pipeline.cli.terminal import printable, shown
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

LONGEST_KEY = 4096


@click.group()
def organizations() -> None:
    """Add, list, check, disable and remove organizations."""


@organizations.command()
@click.argument("organization_id", metavar="ID")
@click.option("--name", required=True, help="The organization's name, where the application has none yet.")
@click.option("--api-url", help="Cliniko's API, where the key does not tell: https://api.au4.cliniko.com/v1")
@click.option("--no-validate", is_flag=True, help="Do not ask Cliniko whether the key works.")
def add(organization_id: str, name: str, api_url: str | None, *, no_validate: bool) -> None:
    """Store an organization's Cliniko API key, encrypted; it is read from standard input or a hidden prompt."""
    if not organization_id.strip() or not organization_id.isprintable():
        raise click.BadParameter("must be printable and not blank.", param_hint="ID")
    with session() as runtime:
        # Asked for only when the rest is known to work.
        vault = runtime.vault
        rehearse_addition(runtime.database, organization_id, name)
        credentials = _located(ClinikoCredentials(_read_api_key(), None, api_url), runtime.settings.allowed_hosts)
        with runtime.client_for(organization_id, credentials, max_attempts=CHECK_ATTEMPTS) as client:
            if not no_validate:
                client.validate()
            found = None if no_validate else client.time_zone()
        with runtime.database.operator() as connection:
            stored.save(connection, organization_id, name, vault.encrypt(credentials), validated=not no_validate)
            zone = scheduling.take_time_zone(connection, organization_id, found)
    click.echo(f"Stored the credentials of '{organization_id}'{'' if no_validate else '; Cliniko accepts them'}.")
    click.echo(_night(organization_id, zone))


@organizations.command(name="list")
def list_() -> None:
    """Show the organizations that have Cliniko credentials."""
    with session() as runtime, runtime.database.operator() as connection:
        found = stored.organizations(connection)
        schedules = {each.organization_id: each for each in scheduling.schedulings(connection)}
    table = Table("ID", "Name", "Active", "Key last accepted", "Schedule")
    for each in found:
        validated = f"{each.last_validated_at:%Y-%m-%d %H:%M} UTC" if each.last_validated_at else "never"
        state = "disabled" if not each.is_active else "paused" if each.pause_reason else "yes"
        table.add_row(shown(each.id), shown(each.name), state, validated, _schedule(schedules[each.id]))
    if found:
        output_console().print(table)
    else:
        click.echo("No organizations yet: `cliniko-pipeline organizations add ID --name NAME`.")


@organizations.command()
@click.argument("organization_id", metavar="ID")
def validate(organization_id: str) -> None:
    """Ask Cliniko whether the stored key works."""
    with session() as runtime:
        with runtime.client(organization_id, max_attempts=CHECK_ATTEMPTS) as client:
            client.validate()
            found = client.time_zone()
        with runtime.database.operator() as connection:
            stored.mark_validated(connection, organization_id)
            zone = scheduling.take_time_zone(connection, organization_id, found)
    click.echo(f"Cliniko accepts the credentials of '{organization_id}'.")
    click.echo(_night(organization_id, zone))


@organizations.command()
@click.argument("organization_id", metavar="ID")
def disable(organization_id: str) -> None:
    """Stop syncing an organization; its data stay."""
    with session() as runtime, runtime.database.operator() as connection:
        stored.set_active(connection, organization_id, active=False)
    click.echo(f"Disabled '{organization_id}'.")


@organizations.command()
@click.argument("organization_id", metavar="[ID]", required=False)
@click.option("--paused", "all_paused", is_flag=True, help="All that are paused, after what paused them was mended.")
def enable(organization_id: str | None, *, all_paused: bool) -> None:
    """Let a disabled or paused organization be synced again."""
    if (organization_id is not None) == all_paused:
        raise click.UsageError("Say which organization, or --paused for all that are paused.")
    with session() as runtime, runtime.database.operator() as connection:
        if organization_id is not None:
            stored.set_active(connection, organization_id, active=True)
        ended = scheduling.end_pause(connection, organization_id)
    click.echo(f"Ended {ended} pauses." if organization_id is None else f"Enabled '{organization_id}'.")


class _TimeOfDay(click.ParamType[time]):
    name = "HH:MM"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> time:
        try:
            return time_of_day(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


@organizations.command()
@click.argument("organization_id", metavar="ID")
@click.option("--every", "minutes", type=click.IntRange(1, 1440), metavar="MINUTES", help="Sync it so often.")
@click.option("--full-at", type=_TimeOfDay(), metavar="HH:MM", help="Read everything at that time of its day.")
@click.option("--time-zone", "zone", metavar="NAME", help="Whose time full syncs go by: an IANA name.")
@click.option("--on/--off", "is_on", default=None, help="Whether the schedule syncs it at all.")
@click.option("--default", "as_settings", is_flag=True, help="As the settings say, but for its time zone.")
def schedule(
    organization_id: str,
    minutes: int | None,
    full_at: time | None,
    zone: str | None,
    *,
    is_on: bool | None,
    as_settings: bool,
) -> None:
    """Give an organization a schedule of its own."""
    own = (minutes, full_at, zone, is_on) != (None, None, None, None)
    if own == as_settings:
        raise click.UsageError("Say --every, --full-at, --time-zone, --on or --off, or else --default.")
    name = iana_name(zone)
    if zone is not None and name is None:
        raise click.BadParameter("no time zone of the IANA's, such as Australia/Sydney.", param_hint="--time-zone")
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
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(organization_id: str, *, yes: bool) -> None:
    """Delete an organization's credentials and all the pipeline stored for it."""
    with session() as runtime:
        if not yes:
            click.confirm(
                f"Delete the credentials of '{organization_id}'{_name_of(runtime, organization_id)} and all its synced"
                " data?",
                abort=True,
            )
        rows = stored.remove(runtime.database, organization_id)
    click.echo(f"Removed '{organization_id}': its credentials and {rows} rows. Its contacts were not touched.")


def _located(credentials: ClinikoCredentials, allowed_hosts: frozenset[str]) -> ClinikoCredentials:
    """The same with region and API URL, for other programs that read what is stored and cannot work them out."""
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


def _night(organization_id: str, zone: str | None) -> str:
    if zone is not None:
        return f"Its nightly full syncs go by the time of {zone}."
    return (
        "Its nightly full syncs go by UTC, since no time zone is known of it: set one with"
        f" `cliniko-pipeline organizations schedule {organization_id} --time-zone NAME`."
    )


def _name_of(runtime: Runtime, organization_id: str) -> str:
    """For the question; nothing where there are no credentials any more, which is no reason not to remove the rows."""
    with runtime.database.operator() as connection:
        names = {each.id: each.name for each in stored.organizations(connection)}
    return f" ({printable(names[organization_id])})" if organization_id in names else ""


def _read_api_key() -> str:
    if sys.stdin.isatty():
        return click.prompt("Cliniko API key", hide_input=True)
    key = sys.stdin.readline(LONGEST_KEY).strip()
    if not key:
        raise CredentialsFormatError("There is no API key on standard input: pipe it in, or run this in a terminal.")
    return key
