"""`cliniko-pipeline credentials`: how the stored credentials are encrypted."""

import click

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.errors import CredentialsError
from cliniko_pipeline.postgres import organizations as stored


@click.group()
def credentials() -> None:
    """Manage the encryption of the stored credentials."""


@credentials.command()
def rotate() -> None:
    """Encrypt all stored credentials anew under the first key of CREDENTIALS_ENCRYPTION_KEY."""
    rotated, current = 0, 0
    unreadable: list[str] = []
    with session() as runtime, runtime.database.operator() as connection:
        vault = runtime.vault
        for organization_id, encrypted in stored.all_stored_credentials(connection).items():
            if vault.is_current(encrypted):
                current += 1
                continue
            try:
                stored.replace_encrypted(connection, organization_id, vault.rotate(encrypted))
                rotated += 1
            except CredentialsError as error:
                unreadable.append(f"'{organization_id}': {error}")
    click.echo(f"Encrypted {rotated} anew; {current} already were under the first key.")
    for line in unreadable:
        click.echo(f"Error: not rotated, {line}", err=True)
    raise SystemExit(1 if unreadable else 0)
