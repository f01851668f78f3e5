"""`cliniko-pipeline webhooks`: secrets of incoming webhook events, and the target of outgoing deliveries."""

import base64
import secrets
import sys
from datetime import timedelta
from uuid import uuid4

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.terminal import output_console, shown, utc_text
from cliniko_pipeline.errors import ArgumentError, CredentialsError
from cliniko_pipeline.orchestration.plans.webhooks import trial_message
from cliniko_pipeline.orchestration.webhooks.posting import Destination, post, require_usable
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables import webhook_deliveries as deliveries
from cliniko_pipeline.postgres.operator_tables import webhooks as incoming
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import Delivery, Target
from cliniko_pipeline.runtime import Runtime

PREFIX = "whsec_"
SECRET_BYTES = 32
MAX_DELIVERIES_SHOWN = 20
MAX_HOURS = 8760


@click.group()
def webhooks() -> None:
    """Manage incoming webhook events and outgoing deliveries."""


@webhooks.group("secrets")
def secrets_() -> None:
    """Manage the secrets that sign incoming webhook events."""


@secrets_.command()
@click.argument("organization_id", metavar="ORG")
def create(organization_id: str) -> None:
    """Create a secret and print it once."""
    secret = _new_secret()
    with session() as runtime, runtime.database.operator() as connection:
        stored.organization(connection, organization_id)
        secret_id = incoming.add_secret(connection, organization_id, runtime.vault.encrypt_text(secret))
    click.echo(secret)
    click.echo(
        f"This is secret {secret_id}; it is not shown again. Post events signed with it to"
        f" /v1/webhooks/{organization_id}.",
        err=True,
    )


@secrets_.command("list")
@click.argument("organization_id", metavar="ORG")
def list_(organization_id: str) -> None:
    """Show the organization's secrets, without their values, and its pending webhook events."""
    with session() as runtime, runtime.database.operator() as connection:
        stored.organization(connection, organization_id)
        found = incoming.webhook_secrets(connection, organization_id)
        pending = incoming.pending_events(connection).get(organization_id)
    if not found:
        click.echo(f"No secrets: `cliniko-pipeline webhooks secrets create {organization_id}`.")
        return
    table = Table("ID", "State", "Created", "Expires")
    for secret in found:
        state = "valid" if secret.is_valid else "expired"
        table.add_row(secret.id, state, utc_text(secret.created_at), utc_text(secret.expires_at))
    output_console().print(table)
    if pending is not None:
        events = "1 event waits" if pending.events == 1 else f"{pending.events} events wait"
        click.echo(f"{events} for a sync; the last one came at {utc_text(pending.received_at)}.")


@secrets_.command()
@click.argument("organization_id", metavar="ORG")
@click.argument("secret_id", metavar="ID")
@click.option(
    "--expires-in-hours",
    type=click.IntRange(1, MAX_HOURS),
    metavar="HOURS",
    help="Keep the secret valid for this many hours.",
)
def revoke(organization_id: str, secret_id: str, expires_in_hours: int | None) -> None:
    """Revoke a secret."""
    with session() as runtime, runtime.database.operator() as connection:
        if expires_in_hours is None:
            incoming.revoke_secret(connection, organization_id, secret_id)
            click.echo(f"Secret {secret_id} is revoked.")
        else:
            incoming.expire_secret(connection, organization_id, secret_id, timedelta(hours=expires_in_hours))
            click.echo(f"Secret {secret_id} expires in {expires_in_hours} hours at the latest.")


@webhooks.group()
def out() -> None:
    """Manage the target of an organization's webhook deliveries."""


@out.command("set")
@click.argument("organization_id", metavar="ORG")
@click.argument("url", required=False)
def set_(organization_id: str, url: str | None) -> None:
    """Post the result of each future sync of ORG to URL, and print the secret that signs these requests.

    If the argument URL is omitted, it is read from standard input or a hidden prompt. Omit a URL that contains a
    secret, because process lists and shell histories show arguments.
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
        f"Results of syncs of '{organization_id}' go to {destination.label}, signed with this secret. It is not shown"
        " again.",
        err=True,
    )


@out.command()
@click.argument("organization_id", metavar="ORG")
def show(organization_id: str) -> None:
    """Show the target, without secret parts of its URL, and the last deliveries."""
    with session() as runtime, runtime.database.operator() as connection:
        target = deliveries.target(connection, organization_id)
        found = deliveries.deliveries(connection, organization_id, MAX_DELIVERIES_SHOWN)
        click.echo(f"To: {_label(runtime, target)}, since {utc_text(target.set_at)}")
    if target.disabled_at is not None:
        click.echo(
            f"Disabled since {utc_text(target.disabled_at)}. {target.disabled_reason} Enable it with"
            f" `cliniko-pipeline webhooks out set {organization_id} URL`."
        )
    if not found:
        click.echo("No deliveries yet.")
        return
    table = Table("Sync", "State", "Attempts", "Last response", "Created", "Next attempt")
    for delivery in found:
        cells = (delivery.run_id, _state(delivery), str(delivery.attempts), shown(delivery.outcome or ""))
        next_attempt = "" if delivery.send_at is None else utc_text(delivery.send_at)
        table.add_row(*cells, utc_text(delivery.created_at), next_attempt)
    output_console().print(table)


@out.command()
@click.argument("organization_id", metavar="ORG")
def remove(organization_id: str) -> None:
    """Remove the target. Results of later syncs are not sent."""
    with session() as runtime, runtime.database.operator() as connection:
        deliveries.remove_target(connection, organization_id)
    click.echo(f"Results of syncs of '{organization_id}' are no longer sent.")


@out.command("test")
@click.argument("organization_id", metavar="ORG")
def try_(organization_id: str) -> None:
    """Post a message of type `test` now."""
    with session() as runtime:
        with runtime.database.operator() as connection:
            target = deliveries.target(connection, organization_id)
        destination = Destination.from_text(runtime.vault.decrypt_text(target.encrypted))
        now = runtime.now()
    answer = post(destination, f"test_{uuid4()}", trial_message(organization_id, now), now)
    if not answer.is_taken:
        raise ArgumentError(f"{destination.label} refused the test message: {answer.outcome}.")
    click.echo(f"{destination.label} accepted the test message: {answer.outcome}.")


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
        return "delivered"
    if delivery.ended_at is not None:
        return "given up"
    return "pending" if delivery.attempts == 0 else "retrying"


def _new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
