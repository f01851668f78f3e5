"""`cliniko-pipeline tokens`: who may use the HTTP API."""

from datetime import UTC, datetime, timedelta

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.status import output_console
from cliniko_pipeline.cli.terminal import shown
from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.operator_tables import api_tokens
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables.api_tokens import ApiToken
from cliniko_pipeline.runtime import Runtime

DAYS = 90
MOST_DAYS = 3650


@click.group()
def tokens() -> None:
    """Make, show and revoke tokens of the HTTP API."""


@tokens.command()
@click.option("--name", required=True, help="Whom or what it is for.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "sync", "admin"]),
    multiple=True,
    default=("read",),
    show_default=True,
    help="May be given several times; admin includes the others.",
)
@click.option("--organization", "organizations", multiple=True, metavar="ID", help="May be given several times.")
@click.option("--all-organizations", is_flag=True, help="Those added later too.")
@click.option(
    "--days", type=click.IntRange(1, MOST_DAYS), default=DAYS, show_default=True, help="For how long it is good."
)
@click.option("--never-expires", is_flag=True, help="Until it is revoked.")
@click.option(
    "--requests-per-minute", type=click.IntRange(1, 100_000), help="In place of the setting API_REQUESTS_PER_MINUTE."
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
    """Make a token, and print it: only now, for nothing but its digest is stored."""
    if bool(organizations) == all_organizations:
        raise click.UsageError("Say whose data it opens: either --organization ID or --all-organizations.")
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
    click.echo(f"This is token {token.id}; keep it as you keep passwords: it is not shown again.", err=True)


@tokens.command("list")
def list_() -> None:
    """Show the tokens: what they are good for, and when they were last used."""
    with session() as runtime, runtime.database.operator() as connection:
        found = api_tokens.tokens(connection)
    if found:
        output_console().print(_table(found))
    else:
        click.echo("No tokens yet: `cliniko-pipeline tokens create --name NAME --organization ID`.")


@tokens.command()
@click.argument("token_id", metavar="ID")
def revoke(token_id: str) -> None:
    """Close a token at once and for good."""
    with session() as runtime, runtime.database.operator() as connection:
        api_tokens.revoke(connection, token_id)
    click.echo(f"Token {token_id} is revoked.")


@tokens.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def refusals(limit: int) -> None:
    """Show which requests were refused, the latest first."""
    with session() as runtime, runtime.database.operator() as connection:
        found = api_tokens.refusals(connection, limit)
    if not found:
        click.echo("No request was refused.")
        return
    table = Table("Last at", "Attempts", "Why", "Token", "From", "Request", "Organization")
    for each in found:
        what = each.refusal
        request = f"{what.method} {what.route}"
        cells = (what.reason, what.token_id, what.address, request, what.organization_id)
        table.add_row(_instant(each.last_at), str(each.attempts), *map(shown, cells))
    output_console().print(table)


def _require_known(runtime: Runtime, organizations: tuple[str, ...]) -> None:
    with runtime.database.operator() as connection:
        known = {each.id for each in stored.organizations(connection)}
    for organization_id in organizations:
        if organization_id not in known:
            raise ArgumentError(
                f"There is no organization '{organization_id}': `cliniko-pipeline organizations list` shows which there"
                " are."
            )


def _table(found: list[ApiToken]) -> Table:
    table = Table("ID", "Name", "State", "Scopes", "Organizations", "Expires", "Last used")
    for each in found:
        table.add_row(
            each.id,
            shown(each.name),
            _state(each),
            ", ".join(sorted(each.scopes)),
            "all" if each.organizations is None else shown(", ".join(sorted(each.organizations))),
            "never" if each.expires_at is None else _instant(each.expires_at),
            "never" if each.last_used_at is None else _instant(each.last_used_at),
        )
    return table


def _state(token: ApiToken) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.is_expired else "good"


def _instant(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
