"""`cliniko-pipeline organizations`: which clinics are synced, and their credentials."""

import sys
from urllib.parse import urlsplit

import click
from rich.markup import escape
from rich.table import Table

from cliniko_pipeline.cli.session import CHECK_ATTEMPTS, session
from cliniko_pipeline.cli.status import output_console
from cliniko_pipeline.cliniko.shards import resolve_api_url, shard_of
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.errors import CredentialsFormatError
from cliniko_pipeline.postgres import organizations as stored
from cliniko_pipeline.runtime import Runtime

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
        credentials = _located(ClinikoCredentials(_read_api_key(), None, api_url), runtime.settings.allowed_hosts)
        with runtime.client_for(organization_id, credentials, max_attempts=CHECK_ATTEMPTS) as client:
            if not no_validate:
                client.validate()
        with runtime.database.operator() as connection:
            stored.save(connection, organization_id, name, vault.encrypt(credentials), validated=not no_validate)
    click.echo(f"Stored the credentials of '{organization_id}'{'' if no_validate else '; Cliniko accepts them'}.")


@organizations.command(name="list")
def list_() -> None:
    """Show the organizations that have Cliniko credentials."""
    with session() as runtime, runtime.database.operator() as connection:
        found = stored.organizations(connection)
    table = Table("ID", "Name", "Active", "Key last accepted")
    for each in found:
        validated = f"{each.last_validated_at:%Y-%m-%d %H:%M} UTC" if each.last_validated_at else "never"
        table.add_row(escape(each.id), escape(each.name), "yes" if each.is_active else "disabled", validated)
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
        with runtime.database.operator() as connection:
            stored.mark_validated(connection, organization_id)
    click.echo(f"Cliniko accepts the credentials of '{organization_id}'.")


@organizations.command()
@click.argument("organization_id", metavar="ID")
def disable(organization_id: str) -> None:
    """Stop syncing an organization; its data stay."""
    with session() as runtime, runtime.database.operator() as connection:
        stored.set_active(connection, organization_id, active=False)
    click.echo(f"Disabled '{organization_id}'.")


@organizations.command()
@click.argument("organization_id", metavar="ID")
def enable(organization_id: str) -> None:
    """Let a disabled organization be synced again."""
    with session() as runtime, runtime.database.operator() as connection:
        stored.set_active(connection, organization_id, active=True)
    click.echo(f"Enabled '{organization_id}'.")


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


def _name_of(runtime: Runtime, organization_id: str) -> str:
    """For the question; nothing where there are no credentials any more, which is no reason not to remove the rows."""
    with runtime.database.operator() as connection:
        names = {each.id: each.name for each in stored.organizations(connection)}
    return f" ({names[organization_id]})" if organization_id in names else ""


def _read_api_key() -> str:
    if sys.stdin.isatty():
        return click.prompt("Cliniko API key", hide_input=True)
    key = sys.stdin.readline(LONGEST_KEY).strip()
    if not key:
        raise CredentialsFormatError("There is no API key on standard input: pipe it in, or run this in a terminal.")
    return key
