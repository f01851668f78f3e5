"""What the reading of appointments must know of those already stored. Runs in the organization context."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.tables import Table


def has_groups(connection: Connection) -> bool:
    """Whether there is any group appointment, those included that could not be understood."""
    return connection.execute(sa.text(sql("crawls/has_group_appointments"))).scalar_one()


def stored_ids(connection: Connection, table: Table) -> set[str]:
    """The ids of a small table's rows, appointment types or practitioners."""
    return set(connection.execute(sa.text(f"select id from {table.qualified}")).scalars())


def nameless_ids(connection: Connection, table: Table) -> set[str]:
    """Return the ids of a small table's rows for which Cliniko gave no name."""
    return set(connection.execute(sa.text(f"select id from {table.qualified} where name is null")).scalars())
