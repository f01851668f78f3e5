"""`cliniko-pipeline credentials`: how the stored credentials are encrypted."""

from collections.abc import Callable, Iterator
from functools import partial

import click
from sqlalchemy.engine import Connection

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.errors import CredentialsError
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables import webhooks


@click.group()
def credentials() -> None:
    """Manage the encryption of the stored credentials."""


@credentials.command()
def rotate() -> None:
    """Encrypt all stored credentials and secrets anew under the first key of CREDENTIALS_ENCRYPTION_KEY."""
    rotated, current = 0, 0
    unreadable: list[str] = []
    with session() as runtime, runtime.database.operator() as connection:
        vault = runtime.vault
        for name, encrypted, replace in _everything_encrypted(connection):
            if vault.is_current(encrypted):
                current += 1
                continue
            try:
                replace(vault.rotate(encrypted))
                rotated += 1
            except CredentialsError as error:
                unreadable.append(f"{name}: {error}")
    click.echo(f"Encrypted {rotated} anew; {current} already were under the first key.")
    for line in unreadable:
        click.echo(f"Error: not rotated, {line}", err=True)
    raise SystemExit(1 if unreadable else 0)


def _everything_encrypted(
    connection: Connection,
) -> Iterator[tuple[str, object, Callable[[dict[str, str]], None]]]:
    """What it is called, what is stored, and what stores another encryption of it."""
    for organization_id, encrypted in stored.all_stored_credentials(connection).items():
        yield f"'{organization_id}'", encrypted, partial(stored.replace_encrypted, connection, organization_id)
    for table, key, encrypted in webhooks.encrypted_values(connection):
        yield f"{table} '{key}'", encrypted, partial(webhooks.replace_encrypted, connection, table, key)
