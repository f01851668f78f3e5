"""A PostgreSQL server for one benchmark, and databases that are copies of a migrated one."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer


class Server:
    """A running server. `home` is the folder that it and the benchmark's files are in."""

    def __init__(self, home: Path, embedded: EmbeddedServer) -> None:
        self.home = home
        self._embedded = embedded
        self._numbers = count(1)
        self.execute("create database migrated")
        migrated = Database(embedded.url.set(database="migrated"))
        schema.migrate(migrated, create_application_tables=True)
        migrated.close()

    @property
    def version(self) -> str:
        """The server's version."""
        with psycopg.connect(libpq_url(self._embedded.url)) as connection:
            return connection.info.parameter_status("server_version") or ""

    @contextmanager
    def database(self) -> Generator[Database]:
        """Make a migrated database; drop it at the end of the block."""
        name = f"benchmark_{next(self._numbers)}"
        self.execute(f"create database {name} template migrated")
        database = Database(self._embedded.url.set(database=name))
        schema.migrate(database)  # The organization role is the copied database's.
        try:
            yield database
        finally:
            database.close()
            self.execute(f"drop database {name} with (force)")

    def execute(self, *statements: str) -> None:
        """Execute statements as a superuser, outside of a transaction."""
        with psycopg.connect(libpq_url(self._embedded.url), autocommit=True) as connection:
            for each in statements:
                connection.execute(each.encode())


@contextmanager
def running_server() -> Generator[Server]:
    """Run a server in a temporary folder until the end of the block."""
    with (
        tempfile.TemporaryDirectory(prefix="cliniko-benchmark-") as folder,
        EmbeddedServer(Path(folder) / "postgres") as embedded,
    ):
        yield Server(Path(folder), embedded)


def libpq_url(url: URL) -> str:
    """Return the URL in the form that libpq and other programs take."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def server_version(database: Database) -> str:
    """Return the version of a database's server."""
    with database.operator() as connection:
        return connection.execute(sa.text("show server_version")).scalar_one()


def execute(database: Database, *statements: str) -> None:
    """Execute statements as a superuser, for whom there is no row-level security, in one transaction."""
    with database.operator() as connection:
        for each in statements:
            # Without parameters, since a percent sign would begin one.
            connection.execution_options(no_parameters=True).exec_driver_sql(each)


def vacuum(database: Database, *tables: str) -> None:
    """Do now what the server does by itself some time later, so that it does not run while something is measured."""
    with database.operator_statement() as connection:
        connection.execute(sa.text(f"vacuum analyze {', '.join(tables)}"))
