"""Databases for tests, created by a superuser and dropped after the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.isolation import organization_role


def administer(url: URL, *statements: str) -> None:
    """Run statements outside of a transaction."""
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


@contextmanager
def created_database(server_url: URL, template: str = "template1", options: str = "encoding 'UTF8'") -> Iterator[URL]:
    """Create a copy of the template on the server. At the end, drop it with its connections and its role."""
    name = f"test_{uuid4().hex}"
    url = server_url.set(database=name)
    administer(server_url, f"create database {name} template {template} {options}")
    role = organization_role_of(url)
    try:
        if not template.startswith("template"):
            _migrate(url)  # because the copy still has the role and the identity of the template
        yield url
    finally:
        administer(server_url, f"drop database {name} with (force)", f"drop role if exists {role}")


@contextmanager
def owned_database(server: URL) -> Iterator[Database]:
    """Create a database with the application's tables. Its owner may log in and create roles."""
    owner = f"owner_{uuid4().hex}"
    administer(server, f"create role {owner} login createrole password 'owner'")
    with created_database(server, "template0", f"encoding 'UTF8' owner {owner}") as url:
        database = Database(url.set(username=owner, password="owner"))
        administer(database.url, sql("schema/application_tables"))
        yield database
        database.close()
    administer(server, f"drop owned by {owner}", f"drop role {owner}")


def organization_role_of(url: URL) -> str:
    """Return the name of the database's organization role."""
    database = Database(url)
    try:
        with database.operator() as connection:
            return organization_role(connection)
    finally:
        database.close()


def _migrate(url: URL) -> None:
    database = Database(url)
    try:
        schema.migrate(database, adopts=True)
    finally:
        database.close()
