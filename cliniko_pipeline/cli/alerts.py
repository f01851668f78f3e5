"""`cliniko-pipeline alerts`: open alerts, and a test of the channels."""

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.terminal import output_console, shown, utc_text
from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.orchestration.alerts.channels import channels, require_known, send
from cliniko_pipeline.orchestration.alerts.messages import TEST
from cliniko_pipeline.postgres.operator_tables.alerts import Alert, Message, open_alerts


@click.group()
def alerts() -> None:
    """Show open alerts and test the channels."""


@alerts.command("list")
def list_() -> None:
    """Show the open alerts."""
    with session() as runtime, runtime.database.operator() as connection:
        found = open_alerts(connection)
    if found:
        output_console().print(_table(found))
    else:
        click.echo("No open alerts.")


@alerts.command("test")
def try_() -> None:
    """Send a test alert to every channel of CLINIKO_ALERT_URLS."""
    with session() as runtime:
        known = channels(runtime.settings.alert_urls)
    if not known:
        raise SettingsError(
            "CLINIKO_ALERT_URLS is not set, so no alert is sent. Set it to Apprise URLs, such as"
            " mailto://USER:PASSWORD@HOST?to=ADDRESS."
        )
    message = Message(TEST, "A test of cliniko_pipeline's alerts", "This is a test. No action is needed.")
    failed: list[str] = []
    for channel in known:
        require_known(channel)
        is_sent = send(channel, message)
        click.echo(f"{channel.label}: {'sent' if is_sent else 'failed'}")
        failed += [] if is_sent else [channel.label]
    if failed:
        raise SettingsError(
            f"The test alert was not sent to {', '.join(failed)} of CLINIKO_ALERT_URLS. Check the URL, and check"
            " that this machine can reach the service."
        )


def _table(found: list[Alert]) -> Table:
    table = Table(title="Alerts", title_justify="left")
    for heading in ("Organization", "Problem", "Since", "Last sent"):
        table.add_column(heading, no_wrap=True)
    table.add_column("Reason")
    for alert in found:
        problem = alert.kind if alert.name == "sync" else alert.name
        times = map(utc_text, (alert.raised_at, alert.told_at))
        table.add_row(shown(alert.organization_id), shown(problem), *times, shown(alert.reason))
    return table
