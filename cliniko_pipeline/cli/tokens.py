"""`cliniko-pipeline tokens`: tokens of the HTTP API, and refused requests."""

from datetime import timedelta

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.terminal import output_console, shown, utc_text
from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.operator_tables import api_tokens
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables.api_tokens import ApiToken
from cliniko_pipeline.runtime import Runtime

DEFAULT_DAYS = 90
MAX_DAYS = 3650


@click.group()
def tokens() -> None:
    """Create, list and revoke tokens of the HTTP API."""


@tokens.command()
@click.option("--name", required=True, help="What the token is for.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "sync", "admin"]),
    multiple=True,
    default=("read",),
    show_default=True,
    help="Repeatable. The scope admin includes read and sync.",
)
@click.option(
    "--organization", "organizations", multiple=True, metavar="ID", help="Accessible organization. Repeatable."
)
@click.option("--all-organizations", is_flag=True, help="Access to all organizations, including those added later.")
@click.option(
    "--days", type=click.IntRange(1, MAX_DAYS), default=DEFAULT_DAYS, show_default=True, help="Days of validity."
)
@click.option("--never-expires", is_flag=True, help="Valid until revoked.")
@click.option(
    "--requests-per-minute", type=click.IntRange(1, 100_000), help="Overrides the setting API_REQUESTS_PER_MINUTE."
)
def create(
    name: str,
    scopes: tuple[str, ...],
    organizations: tuple[str, ...],
    *,
    all_organizations: bool,
    days: int,
    never_expires: bool,
    requests_per_minute: int | None,
) -> None:
    """Create a token and print it once. Only the token's digest is stored."""
    if bool(organizations) == all_organizations:
        raise click.UsageError("Give either --organization ID or --all-organizations.")
    if not name.strip() or not name.isprintable():
        raise click.BadParameter("must be printable and not blank.", param_hint="--name")
    with session() as runtime:
        _require_known(runtime, organizations)
        with runtime.database.operator() as connection:
            token = api_tokens.create(
                connection,
                name,
                scopes=scopes,
                organizations=None if all_organizations else organizations,
                expires_at=None if never_expires else runtime.now() + timedelta(days=days),
                requests_per_minute=requests_per_minute,
            )
    click.echo(token.text)
    click.echo(f"This is token {token.id}. Keep it like a password: it is not shown again.", err=True)


@tokens.command("list")
def list_() -> None:
    """Show all tokens, with scopes, expiry and last use."""
    with session() as runtime, runtime.database.operator() as connection:
        found = api_tokens.tokens(connection)
    if found:
        output_console().print(_table(found))
    else:
        click.echo("No tokens yet: `cliniko-pipeline tokens create --name NAME --organization ID`.")


@tokens.command()
@click.argument("token_id", metavar="ID")
def revoke(token_id: str) -> None:
    """Revoke a token, immediately and for good."""
    with session() as runtime, runtime.database.operator() as connection:
        api_tokens.revoke(connection, token_id)
    click.echo(f"Token {token_id} is revoked.")


@tokens.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def refusals(limit: int) -> None:
    """Show refused requests, latest first."""
    with session() as runtime, runtime.database.operator() as connection:
        found = api_tokens.refusals(connection, limit)
    if not found:
        click.echo("No request was refused.")
        return
    table = Table("Last at", "Attempts", "Reason", "Token", "From", "Request", "Organization")
    for refused in found:
        refusal = refused.refusal
        request = f"{refusal.method} {refusal.route}"
        cells = (refusal.reason, refusal.token_id, refusal.address, request, refusal.organization_id)
        table.add_row(utc_text(refused.last_at), str(refused.attempts), *map(shown, cells))
    output_console().print(table)


def _require_known(runtime: Runtime, organizations: tuple[str, ...]) -> None:
    with runtime.database.operator() as connection:
        known = {organization.id for organization in stored.organizations(connection)}
    for organization_id in organizations:
        if organization_id not in known:
            raise ArgumentError(
                f"There is no organization '{organization_id}': `cliniko-pipeline organizations list` shows all."
            )


def _table(found: list[ApiToken]) -> Table:
    table = Table("ID", "Name", "State", "Scopes", "Organizations", "Expires", "Last used")
    for token in found:
        table.add_row(
            token.id,
            shown(token.name),
            _state(token),
            ", ".join(sorted(token.scopes)),
            "all" if token.organizations is None else shown(", ".join(sorted(token.organizations))),
            utc_text(token.expires_at),
            utc_text(token.last_used_at),
        )
    return table


def _state(token: ApiToken) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.is_expired else "valid"
