"""`cliniko-pipeline migrate`: an upgrade of the schema, followed by a rehearsed sync."""

import click

from cliniko_pipeline.cli.terminal import warn
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.identity import copy_problem
from cliniko_pipeline.postgres.schema.rehearsal import require_rehearsed
from cliniko_pipeline.postgres.schema.upgrade import Migration
from cliniko_pipeline.postgres.server.driver_errors import already_set_up
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings


@click.command()
@click.option("--adopt", is_flag=True, help="Allow syncs, alerts and webhooks after a copy, renaming or move.")
@click.option("--dagster", is_flag=True, help="Also create Dagster's tables, or bring them up to date.")
def migrate(*, adopt: bool, dagster: bool) -> None:
    """Bring the database's schema up to date and rehearse a sync. Safe to repeat."""
    with already_set_up(), open_runtime(load_settings()) as runtime:
        embedded = runtime.settings.embedded_database
        done = schema.migrate(
            runtime.database,
            create_application_tables=embedded,
            adopts=adopt,
            contacts_filter=runtime.settings.contacts_filter,
        )
        where = runtime.database.location
        _report(done, where)
        for risk in [] if embedded else schema.risks(runtime.database):
            warn(risk)
        if (problem := copy_problem(runtime.database)) is not None:
            warn(problem)
        for untried in require_rehearsed(runtime.database):
            warn(untried)
        if dagster:
            _migrate_dagster(runtime)


def _migrate_dagster(runtime: Runtime) -> None:
    from cliniko_pipeline.orchestration.instance.home import upgrade_storage  # noqa: PLC0415 (imports Dagster)

    upgrade_storage(runtime)
    click.echo("Dagster's tables are up to date.")


def _report(done: Migration, where: str) -> None:
    if done.made_again:
        click.echo(f"Restored in {where} ({done.after}): {', '.join(done.made_again)}.")
    elif done.changed and done.before == done.after:
        click.echo(f"Repaired the isolation of organizations in {where} ({done.after}).")
    elif done.changed:
        click.echo(f"Migrated {where} from {done.before or 'nothing'} to {done.after}.")
    else:
        click.echo(f"{where} is up to date ({done.after}).")
    if done.filter_changed:
        click.echo("Stored CLINIKO_CONTACTS_FILTER; each organization's next sync uses it.")
    if done.closed_to_readers:
        click.echo(
            "public.active_patients, which had rows, is now under row-level security. Readers must set"
            " app.organization_id first,\nor need their own policy"
            ' (docs/database.md, "Read active_patients from the application").'
            "\npg_dump now needs a role with BYPASSRLS."
        )
    for warning in done.warnings:
        warn(warning)
