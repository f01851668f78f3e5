"""Databases for tests: administered as a superuser, and dropped when the test is over."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL


def administer(url: URL, *statements: str) -> None:
    """Run statements outside of a transaction."""
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@contextmanager
def created_database(server_url: URL, template: str = "template1", options: str = "encoding 'UTF8'") -> Iterator[URL]:
    """Create a copy of the template on the server, and drop it with its connections at the end."""
    name = f"test_{uuid4().hex}"
    administer(server_url, f"create database {name} template {template} {options}")
    try:
        yield server_url.set(database=name)
    finally:
        administer(server_url, f"drop database {name} with (force)")
