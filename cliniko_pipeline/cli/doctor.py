"""`cliniko-pipeline doctor`: checks of everything that a sync needs, with remedies."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import click

from cliniko_pipeline.cli.session import CHECK_ATTEMPTS
from cliniko_pipeline.cli.status import statuses
from cliniko_pipeline.cli.terminal import printable, warn
from cliniko_pipeline.clocks import ClockDifference
from cliniko_pipeline.errors import ClinikoPipelineError, CredentialsError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.postgres.operator_tables.stopped_instigators import stopped_problem
from cliniko_pipeline.postgres.schema import contacts_filter
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.identity import require_own
from cliniko_pipeline.postgres.schema.rehearsal import require_rehearsed
from cliniko_pipeline.postgres.server.driver_errors import already_set_up
from cliniko_pipeline.problems import refused_fields
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings

MAX_CONCURRENT_KEY_CHECKS = 8


@click.command()
def doctor() -> None:
    """Check everything that a sync needs.

    Checks settings, database, keys and reachability, with a remedy for each failure.
    """
    try:
        with open_runtime(load_settings()) as runtime:
            click.secho("✓ The settings are valid", fg="green")
            healthy = _examine(runtime)
    except ClinikoPipelineError as error:
        healthy = _report_failure("The settings are valid", error)
    raise SystemExit(0 if healthy else 1)


def _examine(runtime: Runtime) -> bool:
    """Run the checks and return whether all passed. Stop if the database or its schema is unusable."""
    has_key = _check("There is an encryption key", lambda: runtime.vault)
    where = runtime.database.location
    if not _check(f"PostgreSQL answers ({where})", runtime.database.require_supported_version):
        return False
    is_on_time = _check(
        "This machine's clock agrees with the database's", lambda: _require_clock(runtime.machine_clock())
    )
    if not _check("The schema is up to date", lambda: _require_schema(runtime)):
        return False
    with already_set_up():
        return _examine_migrated(runtime, has_key=has_key) and has_key and is_on_time


def _examine_migrated(runtime: Runtime, *, has_key: bool) -> bool:
    """Run the checks that need the current schema."""
    _show_risks(runtime)
    is_own = _check("The database is not a copy", partial(require_own, runtime.database))
    is_isolated = _check("Organizations are kept apart", partial(schema.require_isolation, runtime.database))
    would_sync = _check("A rehearsed sync succeeds", partial(_rehearse, runtime.database))
    sees_contacts = _check("No policy hides contacts", partial(schema.require_visible_contacts, runtime.database))
    found: list[str] = []
    if not _check("No organization has lost its credentials", lambda: found.extend(_organizations(runtime))):
        return False
    if not found:
        click.echo("No organizations yet: `cliniko-pipeline organizations add ID --name NAME`.")
    for warning in [*(_shared_keys(runtime, found) if has_key else []), *_refused_fields(runtime, found)]:
        warn(warning)
    with ThreadPoolExecutor(MAX_CONCURRENT_KEY_CHECKS) as pool:
        answers = [(organization_id, pool.submit(_validate, runtime, organization_id)) for organization_id in found]
        accepted = [
            _check(f"Cliniko accepts the key of '{printable(organization_id)}'", partial(_require_accepted, answer))
            for organization_id, answer in answers
        ]
    return is_own and is_isolated and would_sync and sees_contacts and all(accepted)


def _show_risks(runtime: Runtime) -> None:
    is_embedded = runtime.settings.embedded_database
    risks = [] if is_embedded else schema.risks(runtime.database)
    stopped = stopped_problem(runtime.database, runtime.settings.ui_url)
    for risk in filter(None, [*risks, stopped]):
        warn(risk)
    if not is_embedded and (hint := schema.dump_hint(runtime.database)) is not None:
        click.echo(f"  {hint}")


def _organizations(runtime: Runtime) -> list[str]:
    with runtime.database.operator() as connection:
        return [organization.id for organization in stored.organizations(connection) if organization.is_active]


def _shared_keys(runtime: Runtime, organization_ids: Sequence[str]) -> list[str]:
    """Return a warning per API key that several organizations share."""
    sharing: dict[str, list[str]] = defaultdict(list)
    with runtime.database.operator() as connection:
        for organization_id in organization_ids:
            with suppress(CredentialsError):  # the check of the key reports this error
                key = runtime.vault.decrypt(stored.stored_credentials(connection, organization_id)).api_key
                sharing[key].append(printable(organization_id))
    return [
        f"The organizations {', '.join(names)} have the same API key, and so the same patients. If that is wrong,"
        " store the right key with `cliniko-pipeline organizations add ID --name NAME`."
        for names in sharing.values()
        if len(names) > 1
    ]


def _refused_fields(runtime: Runtime, organization_ids: list[str]) -> list[str]:
    return [
        f"{printable(organization.id)}: {refused}"
        for organization, state in statuses(runtime, organization_ids)
        for refused in refused_fields(state)
    ]


def _require_schema(runtime: Runtime) -> None:
    condition = runtime.settings.contacts_filter
    if runtime.settings.embedded_database:
        schema.migrate(runtime.database, create_application_tables=True, contacts_filter=condition)
    schema.require_current(runtime.database)
    contacts_filter.require_stored(runtime.database, condition)
    with runtime.database.operator() as connection:
        contacts_filter.require_valid(connection, condition)


def _rehearse(database: Database) -> None:
    for untried in require_rehearsed(database):
        warn(untried)


def _validate(runtime: Runtime, organization_id: str) -> ClockDifference | None:
    with runtime.client(organization_id, max_attempts=CHECK_ATTEMPTS) as client:
        client.validate()
        return client.clock_difference


def _require_accepted(answer: Future[ClockDifference | None]) -> None:
    if (difference := answer.result()) is not None:
        _require_clock(difference)


def _require_clock(difference: ClockDifference) -> None:
    difference.require_allowed()
    if difference.is_notable:
        warn(f"{difference}: set the clock that is wrong (NTP)")


def _check(title: str, check: Callable[[], object]) -> bool:
    try:
        check()
    except ClinikoPipelineError as error:
        return _report_failure(title, error)
    click.secho(f"✓ {title}", fg="green")
    return True


def _report_failure(title: str, error: ClinikoPipelineError) -> bool:
    click.secho(f"✗ {title}", fg="red")
    click.echo(f"  {printable(str(error))}")
    return False
