"""`cliniko-pipeline credentials`: the encryption of stored credentials."""

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
    """Manage the encryption of stored credentials."""


@credentials.command()
def rotate() -> None:
    """Re-encrypt all stored credentials and secrets under the first key of CREDENTIALS_ENCRYPTION_KEY."""
    rotated, current = 0, 0
    unreadable: list[str] = []
    with session() as runtime, runtime.database.operator() as connection:
        vault = runtime.vault
        for name, encrypted, replace in _encrypted_values(connection):
            if vault.is_current(encrypted):
                current += 1
                continue
            try:
                replace(vault.rotate(encrypted))
                rotated += 1
            except CredentialsError as error:
                unreadable.append(f"{name}: {error}")
    click.echo(f"Re-encrypted {rotated}; {current} were already under the first key.")
    for line in unreadable:
        click.echo(f"Error: not re-encrypted: {line}", err=True)
    raise SystemExit(1 if unreadable else 0)


def _encrypted_values(
    connection: Connection,
) -> Iterator[tuple[str, object, Callable[[dict[str, str]], None]]]:
    """Yield the name of each encrypted value, the value itself, and a function that replaces it."""
    for organization_id, encrypted in stored.all_stored_credentials(connection).items():
        yield f"'{organization_id}'", encrypted, partial(stored.replace_encrypted, connection, organization_id)
    for table, key, encrypted in webhooks.encrypted_values(connection):
        yield f"{table} '{key}'", encrypted, partial(webhooks.replace_encrypted, connection, table, key)
