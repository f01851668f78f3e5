"""`cliniko-pipeline alerts`: what was told to the operator, and whether telling works."""

from datetime import UTC

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.status import output_console
from cliniko_pipeline.cli.terminal import shown
from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.orchestration.alerts.channels import channels, require_known, send
from cliniko_pipeline.orchestration.alerts.messages import TEST
from cliniko_pipeline.postgres.operator_tables.alerts import Alert, Notice, open_alerts


@click.group()
def alerts() -> None:
    """What is wrong, and whom it is told."""


@alerts.command("list")
def list_() -> None:
    """Show what is wrong at present, as far as it was told."""
    with session() as runtime, runtime.database.operator() as connection:
        found = open_alerts(connection)
    if found:
        output_console().print(_table(found))
    else:
        click.echo("Nothing is wrong, as far as the daemon has looked.")


@alerts.command("test")
def try_() -> None:
    """Send a test notice to every channel of CLINIKO_ALERT_URLS."""
    with session() as runtime:
        known = channels(runtime.settings.alert_urls)
    if not known:
        raise SettingsError(
            "CLINIKO_ALERT_URLS is not set: alerts go nowhere. Set it to Apprise URLs, such as"
            " mailto://USER:PASSWORD@HOST?to=ADDRESS."
        )
    notice = Notice(TEST, "A test of cliniko_pipeline's alerts", "Nothing is wrong. What to do: nothing.")
    refused: list[str] = []
    for channel in known:
        require_known(channel)
        took = send(channel, notice)
        click.echo(f"{channel.label}: {'took the notice' if took else 'did not take the notice'}")
        refused += [] if took else [channel.label]
    if refused:
        raise SettingsError(
            f"{', '.join(refused)} of CLINIKO_ALERT_URLS did not take the notice: check that the URL is right and that"
            " this machine reaches the service."
        )


def _table(found: list[Alert]) -> Table:
    table = Table(title="Alerts", title_justify="left")
    for heading in ("Organization", "What", "Since", "Last told"):
        table.add_column(heading, no_wrap=True)
    table.add_column("Reason")
    for each in found:
        what = each.kind if each.name == "sync" else each.name
        times = (f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" for moment in (each.raised_at, each.told_at))
        table.add_row(shown(each.organization_id), shown(what), *times, shown(each.reason))
    return table
