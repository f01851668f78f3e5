"""Queries on stored appointments for the next crawl, in the caller's organization context."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.tables import Table


def has_groups(connection: Connection) -> bool:
    """Return whether there is a group appointment, stored or rejected."""
    return connection.execute(sa.text(sql("crawls/has_group_appointments"))).scalar_one()


def stored_ids(connection: Connection, table: Table) -> set[str]:
    """Return the ids of appointment types or practitioners."""
    return set(connection.execute(sa.text(f"select id from {table.qualified}")).scalars())


def nameless_ids(connection: Connection, table: Table) -> set[str]:
    """Return the ids of appointment types or practitioners without a name."""
    return set(connection.execute(sa.text(f"select id from {table.qualified} where name is null")).scalars())
