"""The Dagster instance: its home folder on this machine, and its storage in the database."""

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import resources

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError
from cliniko_pipeline.orchestration.pooled_storage import STORAGE_SCHEMA, storage_url
from cliniko_pipeline.postgres.engine import Database, advisory_key, sql
from cliniko_pipeline.postgres.server.driver_errors import database_error_behind
from cliniko_pipeline.runtime import Runtime

UNFINISHED_SCHEMA = "dagster_unfinished"
STORAGE_VARIABLE = "CLINIKO_DAGSTER_DATABASE_URL"

TABLES_OF_DAGSTER = {
    "runs": ("run_id", "run_body", "status"),
    "event_logs": ("run_id", "event"),
    "jobs": ("job_origin_id", "job_body"),
}
"""One table of each storage of Dagster, with columns by which to recognize the table."""


def instance_environment(runtime: Runtime) -> dict[str, str]:
    """Return the environment variables of Dagster's processes, including the database password.

    Copy the shipped `dagster.yaml` to the Dagster home if the home has none.
    """
    home = runtime.settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    configuration = home / "dagster.yaml"
    if not configuration.exists():
        # A process killed while it copies may leave an empty file, which Dagster would accept. So copy, then rename.
        unfinished = home / f"dagster.yaml.{os.getpid()}"
        with resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "dagster.yaml") as shipped:
            shutil.copyfile(shipped, unfinished)
        unfinished.replace(configuration)
    storage = storage_url(runtime.database.url, STORAGE_SCHEMA)
    return {
        "DAGSTER_HOME": str(home),
        STORAGE_VARIABLE: storage.render_as_string(hide_password=False),
        # The limit of failed runs per tick. With the default of 5, the failed runs of an outage would take hours.
        "DAGSTER_RUN_STATUS_SENSOR_PROCESS_LIMIT": "50",
    }


def open_instance(runtime: Runtime) -> dg.DagsterInstance:
    """Open the instance, and create its storage if there is none.

    Raise DatabaseUnavailableError, or DatabaseSetupError if the instance cannot be opened for another reason.
    """
    environment = instance_environment(runtime)
    os.environ.update(environment)
    with _setup_errors(runtime, environment), runtime.database.operator() as connection:
        # Only one process at a time may create the tables.
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("dagster storage")})
        if not _has_storage(connection):
            _make_storage(runtime.database, environment)
        return dg.DagsterInstance.from_config(environment["DAGSTER_HOME"])


def upgrade_storage(runtime: Runtime) -> None:
    """Create Dagster's tables, or bring the tables of an older Dagster up to date.

    Raise the errors of `open_instance`.
    """
    with open_instance(runtime) as instance, _setup_errors(runtime, os.environ):
        instance.upgrade()


@contextmanager
def _setup_errors(runtime: Runtime, environment: Mapping[str, str]) -> Generator[None, None, None]:
    """Raise an error of the pipeline in place of an error of Dagster or the database."""
    try:
        yield
    except ClinikoPipelineError:
        raise
    except Exception as error:  # noqa: BLE001 (a configured storage can raise anything)
        if found := database_error_behind(error, runtime.database.location):
            raise found from None
        # Dagster's own errors can quote the storage URL with its password.
        raise DatabaseSetupError(
            f"The Dagster instance in {environment['DAGSTER_HOME']} cannot be opened ({type(error).__name__}):"
            " check its dagster.yaml, or move that file away to get the shipped one."
        ) from None


def _has_storage(connection: Connection) -> bool:
    """Return whether Dagster's schema exists. Raise DatabaseSetupError if it lacks Dagster's tables.

    An empty schema is accepted, because Dagster creates its tables in it.
    """
    if not connection.execute(sa.text("select to_regnamespace(:name)"), {"name": STORAGE_SCHEMA}).scalar_one():
        return False
    rows = connection.execute(sa.text(sql("schema/columns")), {"schema": STORAGE_SCHEMA, "names": None})
    found: dict[str, list[str]] = {row.table_name: row.column_names for row in rows}
    strange = [
        f"{STORAGE_SCHEMA}.{table} lacks {', '.join(missing)}" if table in found else f"{table} is missing"
        for table, columns in TABLES_OF_DAGSTER.items()
        if (missing := [column for column in columns if column not in found.get(table, ())])
    ]
    if found and strange:
        raise DatabaseSetupError(
            f"The schema {STORAGE_SCHEMA} is not Dagster's ({'; '.join(strange)}); nothing was changed. Rename it"
            f" (`alter schema {STORAGE_SCHEMA} rename to ...`), or point DATABASE_URL at another database."
        )
    return True


def _make_storage(database: Database, environment: Mapping[str, str]) -> None:
    """Create all tables in a temporary schema, then rename the schema.

    Otherwise a killed process could leave only some of the tables, and Dagster would accept them as complete.
    """
    with database.operator() as connection:
        connection.execute(sa.text(f"drop schema if exists {UNFINISHED_SCHEMA} cascade"))
        connection.execute(sa.text(f"create schema {UNFINISHED_SCHEMA}"))
    unfinished = storage_url(database.url, UNFINISHED_SCHEMA)
    os.environ[STORAGE_VARIABLE] = unfinished.render_as_string(hide_password=False)
    try:
        dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]).dispose()
    finally:
        os.environ.update(environment)
    with database.operator() as connection:
        connection.execute(sa.text(f"alter schema {UNFINISHED_SCHEMA} rename to {STORAGE_SCHEMA}"))
