"""The Dagster instance of this machine: where its home is, and where it stores runs and events."""

import os
import shutil
from importlib import resources
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database, advisory_key
from cliniko_pipeline.runtime import Runtime

STORAGE_SCHEMA = "dagster"
STORAGE_VARIABLE = "CLINIKO_DAGSTER_DATABASE_URL"


def instance_environment(runtime: Runtime) -> dict[str, str]:
    """The environment variables with which Dagster's processes find the instance. One holds the database password.

    Makes the home with the shipped `dagster.yaml` where there is none; an operator's own is left as it is.
    """
    home = runtime.settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    configuration = home / "dagster.yaml"
    if not configuration.exists():
        with resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "dagster.yaml") as shipped:
            shutil.copyfile(shipped, configuration)
    storage = storage_url(runtime.database.url)
    return {"DAGSTER_HOME": str(home), STORAGE_VARIABLE: storage.render_as_string(hide_password=False)}


def open_instance(runtime: Runtime) -> dg.DagsterInstance:
    """The instance, its storage made where it is new. Raises DatabaseSetupError where it cannot be opened."""
    environment = instance_environment(runtime)
    os.environ.update(environment)
    _make_schema(runtime.database)
    try:
        # One process at a time: several that find the storage empty would all make its tables.
        with runtime.database.operator() as connection:
            connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("dagster storage")})
            return dg.DagsterInstance.from_config(str(Path(environment["DAGSTER_HOME"])))
    except ClinikoPipelineError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a configured storage may raise)
        # Dagster's own errors can quote the storage URL with its password.
        raise DatabaseSetupError(
            f"The Dagster instance in {environment['DAGSTER_HOME']} cannot be opened ({type(error).__name__}):"
            " check its dagster.yaml, or move that away and it is made anew."
        ) from None


def _make_schema(database: Database) -> None:
    with database.operator() as connection:
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("dagster storage")})
        connection.execute(sa.text(f"create schema if not exists {STORAGE_SCHEMA}"))


def storage_url(url: URL) -> URL:
    """The database's URL as Dagster's storage needs it: psycopg2, and a schema of its own first in the path."""
    # psycopg2, because dagster-postgres does not understand the errors of psycopg 3.
    return url.set(drivername="postgresql+psycopg2").update_query_dict({"options": f"-csearch_path={STORAGE_SCHEMA}"})
