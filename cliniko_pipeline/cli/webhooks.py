"""`cliniko-pipeline webhooks`: who may say that an organization's account has changed, and who is told of its syncs."""

import base64
import secrets
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.status import output_console
from cliniko_pipeline.cli.terminal import shown
from cliniko_pipeline.errors import ArgumentError, CredentialsError
from cliniko_pipeline.orchestration.plans.webhooks import trial
from cliniko_pipeline.orchestration.webhooks.posting import Destination, post, require_usable
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables import webhook_deliveries as deliveries
from cliniko_pipeline.postgres.operator_tables import webhooks as incoming
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import Delivery, Target
from cliniko_pipeline.runtime import Runtime

PREFIX = "whsec_"
SECRET_BYTES = 32
SHOWN = 20
A_YEAR = 8760  # hours


@click.group()
def webhooks() -> None:
    """Take webhooks that say what changed, and send some when syncs have ended."""


@webhooks.group("secrets")
def secrets_() -> None:
    """What webhooks to this pipeline are signed with."""


@secrets_.command()
@click.argument("organization_id", metavar="ORG")
def create(organization_id: str) -> None:
    """Make a secret beside those there are, and print it: only now, for it is stored encrypted."""
    secret = _new_secret()
    with session() as runtime, runtime.database.operator() as connection:
        stored.organization(connection, organization_id)
        secret_id = incoming.add_secret(connection, organization_id, runtime.vault.encrypt_text(secret))
    click.echo(secret)
    click.echo(
        f"This is secret {secret_id}; it is not shown again. Sign with it and post to /v1/webhooks/{organization_id}.",
        err=True,
    )


@secrets_.command("list")
@click.argument("organization_id", metavar="ORG")
def list_(organization_id: str) -> None:
    """Show the organization's secrets, without what they are, and what webhooks have said."""
    with session() as runtime, runtime.database.operator() as connection:
        stored.organization(connection, organization_id)
        found = incoming.webhook_secrets(connection, organization_id)
        pending = incoming.pending_events(connection).get(organization_id)
    if not found:
        click.echo(f"No secrets: `cliniko-pipeline webhooks secrets create {organization_id}`.")
        return
    table = Table("ID", "State", "Made", "Expires")
    for each in found:
        expires = "never" if each.expires_at is None else _instant(each.expires_at)
        table.add_row(each.id, "good" if each.is_valid else "expired", _instant(each.created_at), expires)
    output_console().print(table)
    if pending is not None:
        received = "1 webhook is" if pending.events == 1 else f"{pending.events} webhooks are"
        click.echo(f"{received} not synced yet, the last of {_instant(pending.received_at)}.")


@secrets_.command()
@click.argument("organization_id", metavar="ORG")
@click.argument("secret_id", metavar="ID")
@click.option(
    "--expires-in-hours",
    type=click.IntRange(1, A_YEAR),
    metavar="HOURS",
    help="Let it be good until then.",
)
def revoke(organization_id: str, secret_id: str, expires_in_hours: int | None) -> None:
    """Take a secret out of use."""
    with session() as runtime, runtime.database.operator() as connection:
        if expires_in_hours is None:
            incoming.revoke_secret(connection, organization_id, secret_id)
            click.echo(f"Secret {secret_id} is revoked.")
        else:
            incoming.expire_secret(connection, organization_id, secret_id, timedelta(hours=expires_in_hours))
            click.echo(f"Secret {secret_id} expires in {expires_in_hours} hours, unless it does so earlier.")


@webhooks.group()
def out() -> None:
    """Who is told of an organization's syncs that have ended."""


@out.command("set")
@click.argument("organization_id", metavar="ORG")
@click.argument("url", required=False)
def set_(organization_id: str, url: str | None) -> None:
    """Post to URL whenever a sync of ORG has ended from now on; prints what these posts are signed with.

    Without URL it is read from standard input or a hidden prompt. An argument is seen in the list of processes and
    kept by the shell: leave it out where the URL holds a secret.
    """
    url = _given_url() if url is None else url
    require_usable(url)
    destination = Destination(url, _new_secret())
    with session() as runtime, runtime.database.operator() as connection:
        stored.organization(connection, organization_id)
        encrypted = runtime.vault.encrypt_text(destination.as_text())
        deliveries.set_target(connection, organization_id, encrypted)
    click.echo(destination.secret)
    click.echo(
        f"{destination.label} is told of the syncs of '{organization_id}', signed with this secret, which is not shown"
        " again.",
        err=True,
    )


@out.command()
@click.argument("organization_id", metavar="ORG")
def show(organization_id: str) -> None:
    """Show who is told, without what may be secret in the URL, and what became of the last deliveries."""
    with session() as runtime, runtime.database.operator() as connection:
        target = deliveries.target(connection, organization_id)
        found = deliveries.deliveries(connection, organization_id, SHOWN)
        click.echo(f"To: {_label(runtime, target)}, since {_instant(target.set_at)}")
    if target.disabled_at is not None:
        click.echo(
            f"Disabled since {_instant(target.disabled_at)}. {target.disabled_reason} `cliniko-pipeline webhooks out"
            f" set {organization_id} URL` begins anew."
        )
    if not found:
        click.echo("Nothing was to be told yet.")
        return
    table = Table("Sync", "State", "Attempts", "Last answer", "Put down", "Next attempt")
    for each in found:
        cells = (each.run_id, _state(each), str(each.attempts), shown(each.outcome or ""))
        table.add_row(*cells, _instant(each.created_at), "" if each.send_at is None else _instant(each.send_at))
    output_console().print(table)


@out.command()
@click.argument("organization_id", metavar="ORG")
def remove(organization_id: str) -> None:
    """Tell nobody any more."""
    with session() as runtime, runtime.database.operator() as connection:
        deliveries.remove_target(connection, organization_id)
    click.echo(f"Nobody is told of the syncs of '{organization_id}' any more.")


@out.command("test")
@click.argument("organization_id", metavar="ORG")
def try_(organization_id: str) -> None:
    """Post a message of type `test` at once."""
    with session() as runtime:
        with runtime.database.operator() as connection:
            target = deliveries.target(connection, organization_id)
        destination = Destination.from_text(runtime.vault.decrypt_text(target.encrypted))
        now = runtime.now()
    answer = post(destination, f"test_{uuid4()}", trial(organization_id, now), now)
    if not answer.is_taken:
        raise ArgumentError(f"{destination.label} did not take it: {answer.outcome}.")
    click.echo(f"{destination.label} took it: {answer.outcome}.")


def _given_url() -> str:
    if sys.stdin.isatty():
        return click.prompt("URL", hide_input=True, err=True)
    return sys.stdin.readline().strip()


def _label(runtime: Runtime, target: Target) -> str:
    try:
        return Destination.from_text(runtime.vault.decrypt_text(target.encrypted)).label
    except CredentialsError as error:
        return str(error)


def _state(delivery: Delivery) -> str:
    if delivery.is_taken:
        return "taken"
    if delivery.ended_at is not None:
        return "given up"
    return "waits" if delivery.attempts == 0 else "is tried again"


def _new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _instant(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
