"""`cliniko-pipeline prune`: the deletion of old runs, events and history."""

import time
from collections.abc import Callable

import click
from rich.table import Table

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.terminal import output_console
from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.orchestration.retention.pruning import Prune, Pruned, Sizes
from cliniko_pipeline.postgres.operator_tables.retention import prune_lock

SECONDS_BETWEEN_LINES = 5.0
ELSEWHERE = "dagster.yaml names a storage that is not PostgreSQL, so Dagster's runs and events were left out."


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show how much would be deleted.")
def prune(*, dry_run: bool) -> None:
    """Delete old runs, events and history, as the daemon does once a day.

    The settings CLINIKO_KEEP_..._DAYS say how long these are kept. Syncs may run meanwhile.
    """
    with session() as runtime, open_instance(runtime) as instance, prune_lock(runtime.database) as is_free:
        if not is_free:
            raise click.ClickException("Another process prunes now. Nothing was deleted.")
        pruning = Prune(runtime, instance, is_dry=dry_run)
        before = pruning.sizes()
        found = pruning.run(_progress(dry_run=dry_run))
        after = pruning.sizes()
    output_console().print(_table(found, dry_run=dry_run))
    for line in _size_lines(before, after, dry_run=dry_run):
        click.echo(line)


def _progress(*, dry_run: bool) -> Callable[[Pruned], None]:
    last = time.monotonic()

    def show(pruned: Pruned) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            click.echo(f"{pruned.kind}: {pruned.rows:,} {'counted' if dry_run else 'deleted'} so far", err=True)

    return show


def _table(found: list[Pruned], *, dry_run: bool) -> Table:
    table = Table(title="Old data", title_justify="left")
    table.add_column("What", no_wrap=True)
    table.add_column("Kept", justify="right", no_wrap=True)
    table.add_column("Would be deleted" if dry_run else "Deleted", justify="right", no_wrap=True)
    for pruned in found:
        table.add_row(pruned.kind, f"{pruned.days} days", f"{pruned.rows:,}")
    return table


def _size_lines(before: Sizes, after: Sizes, *, dry_run: bool) -> list[str]:
    """Return lines about the sizes. Deleted rows leave room in the tables for new rows."""

    def sizes(first: int, second: int) -> str:
        return _megabytes(second) if dry_run else f"{_megabytes(first)} before, {_megabytes(second)} after"

    lines = [f"The pipeline's history takes {sizes(before.pipeline, after.pipeline)}."]
    if before.dagster is None or after.dagster is None:
        return [*lines, ELSEWHERE]
    return [f"Dagster's history takes {sizes(before.dagster, after.dagster)}.", *lines]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
