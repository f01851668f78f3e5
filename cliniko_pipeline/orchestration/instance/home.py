"""The Dagster instance of this machine: where its home is, and where it stores runs and events."""

import os
import shutil
from collections.abc import Mapping
from importlib import resources

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError
from cliniko_pipeline.orchestration.pooled_storage import storage_url
from cliniko_pipeline.postgres.engine import Database, advisory_key, sql
from cliniko_pipeline.postgres.server.driver_errors import database_error_behind
from cliniko_pipeline.runtime import Runtime

STORAGE_SCHEMA = "dagster"
UNFINISHED_SCHEMA = "dagster_unfinished"
STORAGE_VARIABLE = "CLINIKO_DAGSTER_DATABASE_URL"

TABLES_OF_DAGSTER = {
    "runs": ("run_id", "run_body", "status"),
    "event_logs": ("run_id", "event"),
    "jobs": ("job_origin_id", "job_body"),
}
"""The first table of each of Dagster's storages, and columns by which it is told from another's of that name."""


def instance_environment(runtime: Runtime) -> dict[str, str]:
    """The environment variables with which Dagster's processes find the instance. One holds the database password.

    Makes the home with the shipped `dagster.yaml` where there is none; an operator's own is left as it is.
    """
    home = runtime.settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    configuration = home / "dagster.yaml"
    if not configuration.exists():
        # Whole or not at all: a process killed in between would leave an empty one, and Dagster would believe that.
        unfinished = home / f"dagster.yaml.{os.getpid()}"
        with resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "dagster.yaml") as shipped:
            shutil.copyfile(shipped, unfinished)
        unfinished.replace(configuration)
    storage = storage_url(runtime.database.url, STORAGE_SCHEMA)
    return {
        "DAGSTER_HOME": str(home),
        STORAGE_VARIABLE: storage.render_as_string(hide_password=False),
        # So many failed runs are heard of in one tick. With Dagster's five, those of an outage take hours.
        "DAGSTER_RUN_STATUS_SENSOR_PROCESS_LIMIT": "50",
    }


def open_instance(runtime: Runtime) -> dg.DagsterInstance:
    """Open the instance, and make its storage where it is new.

    Raises DatabaseSetupError where it cannot be opened, DatabaseUnavailableError.
    """
    environment = instance_environment(runtime)
    os.environ.update(environment)
    try:
        # One process at a time: several that find the storage empty would all make its tables.
        with runtime.database.operator() as connection:
            connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("dagster storage")})
            if not _has_storage(connection):
                _make_storage(runtime.database, environment)
            return dg.DagsterInstance.from_config(environment["DAGSTER_HOME"])
    except ClinikoPipelineError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a configured storage may raise)
        if found := database_error_behind(error, runtime.database.location):
            raise found from None
        # Dagster's own errors can quote the storage URL with its password.
        raise DatabaseSetupError(
            f"The Dagster instance in {environment['DAGSTER_HOME']} cannot be opened ({type(error).__name__}):"
            " check its dagster.yaml, or move that away and it is made anew."
        ) from None


def _has_storage(connection: Connection) -> bool:
    """Return whether the schema is there. Raise DatabaseSetupError where it holds tables that are not Dagster's.

    An empty one that an operator made is filled by Dagster itself.
    """
    if not connection.execute(sa.text("select to_regnamespace(:name)"), {"name": STORAGE_SCHEMA}).scalar_one():
        return False
    rows = connection.execute(sa.text(sql("schema/schema_columns")), {"schema": STORAGE_SCHEMA})
    found: dict[str, list[str]] = {row.table_name: row.column_names for row in rows}
    strange = [
        f"{STORAGE_SCHEMA}.{table} lacks {', '.join(missing)}" if table in found else f"{table} is missing"
        for table, columns in TABLES_OF_DAGSTER.items()
        if (missing := [column for column in columns if column not in found.get(table, ())])
    ]
    if found and strange:
        raise DatabaseSetupError(
            f"The schema {STORAGE_SCHEMA} is not Dagster's ({'; '.join(strange)}), so nothing was made in it: rename it"
            f" (`alter schema {STORAGE_SCHEMA} rename to ...`), or point DATABASE_URL at another database."
        )
    return True


def _make_storage(database: Database, environment: Mapping[str, str]) -> None:
    """Dagster makes its tables one by one, and takes some for all: so they get their schema's name when all are there.
    What a process leaves that was killed in between is made anew.
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
