"""`cliniko-pipeline backfill`: a Dagster backfill of the assets of many organizations."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cliniko_pipeline.cli.runs.sync import chosen_organizations, report
from cliniko_pipeline.cli.session import session
from cliniko_pipeline.errors import OrganizationUnknownError
from cliniko_pipeline.postgres.schema.identity import require_own
from cliniko_pipeline.runtime import Runtime

if TYPE_CHECKING:
    import dagster as dg

    from cliniko_pipeline.orchestration.runs.backfills import BackfillProgress

SECONDS_BETWEEN_POLLS = 2.0
NO_DAEMON = "no Dagster daemon is running: `cliniko-pipeline ui` starts one"


@click.command()
@click.argument("organization_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "all_organizations", is_flag=True, help="All organizations that are not disabled.")
@click.option("--assets", metavar="NAME,NAME", help="Only these assets, such as contact_mapping,active_patients.")
@click.option("--full", is_flag=True, help="Read all records, and mark those deleted in Cliniko.")
@click.option("--follow", is_flag=True, help="Wait for the end. The exit code is 0 only if all syncs succeeded.")
def backfill(
    organization_ids: tuple[str, ...], *, all_organizations: bool, assets: str | None, full: bool, follow: bool
) -> None:
    """Sync organizations in one backfill of Dagster's daemon.

    The Dagster UI shows the backfill and can cancel it.
    """
    if bool(organization_ids) == all_organizations:
        raise click.UsageError("Give the IDs of organizations, or --all.")
    with session() as runtime:
        require_own(runtime.database)
        runtime.machine_clock().require_allowed()
        ids = _active_ids(runtime, organization_ids)
        errors = _launch(runtime, ids, assets, full=full, follow=follow)
        if follow:
            report(runtime, ids, errors)
    raise SystemExit(1 if errors else 0)


def _active_ids(runtime: Runtime, named: Sequence[str]) -> list[str]:
    found = chosen_organizations(runtime, named)
    for organization in found:
        if not organization.is_active:
            raise OrganizationUnknownError(
                f"Organization '{organization.id}' is disabled:"
                f" `cliniko-pipeline organizations enable {organization.id}` resumes its syncs."
            )
    return [organization.id for organization in found]


def _launch(runtime: Runtime, ids: Sequence[str], assets: str | None, *, full: bool, follow: bool) -> dict[str, str]:
    """Launch the backfill, and follow it if asked; return the errors of failed organizations."""
    from cliniko_pipeline.orchestration.instance.home import open_instance  # noqa: PLC0415
    from cliniko_pipeline.orchestration.runs import backfills  # noqa: PLC0415

    names = backfills.asset_names() if assets is None else [name.strip() for name in assets.split(",")]
    chosen = backfills.chosen_assets(names, full=full)
    # Without a handler, Python prints a warning of Dagster for every attempt while the database is down.
    logging.getLogger().addHandler(logging.NullHandler())
    with open_instance(runtime) as instance:
        has_daemon = backfills.has_daemon(instance, datetime.now(UTC))
        if follow and not has_daemon:
            raise click.ClickException(
                f"Nothing was launched: {NO_DAEMON}. Without --follow, the backfill waits for a daemon."
            )
        backfill_id = backfills.launch_backfill(instance, runtime, ids, chosen, full=full)
        click.echo(f"Backfill {backfill_id} of {len(ids)} organization{'s' if len(ids) > 1 else ''} was launched.")
        click.echo(f"Dagster UI: {runtime.settings.ui_url}/runs/b/{backfill_id}")
        if not has_daemon:
            click.echo(f"The backfill waits: {NO_DAEMON}.", err=True)
        return _followed(instance, runtime, backfill_id, ids) if follow else {}


def _followed(instance: "dg.DagsterInstance", runtime: Runtime, backfill_id: str, ids: Sequence[str]) -> dict[str, str]:
    from cliniko_pipeline.orchestration.runs import backfills  # noqa: PLC0415

    printed = ""
    try:
        while True:
            progress = backfills.backfill_progress(instance, backfill_id, ids)
            if (line := _line(progress, len(ids))) != printed:
                click.echo(line, err=True)
                printed = line
            if progress.has_ended:
                return backfills.reasons(instance, runtime, progress.failed)
            if not backfills.has_daemon(instance, datetime.now(UTC)):
                raise click.ClickException(f"The backfill {backfill_id} waits: {NO_DAEMON}.")
            time.sleep(SECONDS_BETWEEN_POLLS)
    except KeyboardInterrupt:
        click.echo(f"The backfill {backfill_id} continues; the Dagster UI can cancel it.", err=True)
        raise


def _line(progress: "BackfillProgress", total: int) -> str:
    ended = len(progress.succeeded) + len(progress.failed)
    parts = {"failed": progress.failed, "running": progress.running, "waiting": progress.waiting}
    return ", ".join([f"{ended} of {total} done", *(f"{len(found)} {name}" for name, found in parts.items() if found)])
