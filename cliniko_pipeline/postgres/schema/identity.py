"""`cliniko.database_identity`: which database the pipeline was set up in. A copy of it, as staging copies are, must not
use production's API keys or send production's webhooks and alerts.

The identity is the database's name and the server's system identifier: a dump that is restored elsewhere and a database
made of another as its template have others; a restart, another host name and a failover keep both.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DatabaseCopyError
from cliniko_pipeline.postgres.engine import Database

_MAY_READ = "select has_function_privilege('pg_control_system()', 'execute')"
_IDENTITY = "select current_database() || ' of server ' || system_identifier from pg_control_system()"
_WITHOUT_SERVER = "select current_database() || ' with oid ' || oid from pg_database where datname = current_database()"


def adopt(connection: Connection, *, is_forced: bool) -> None:
    """Take this database for the pipeline's own: where none is known yet, or in any case."""
    conflict = "update set identity = excluded.identity, adopted_at = now()" if is_forced else "nothing"
    connection.execute(
        sa.text(
            "insert into cliniko.database_identity (identity) values (:identity)"
            f" on conflict (is_only_row) do {conflict}"
        ),
        {"identity": _identity(connection)},
    )


def require_own(database: Database) -> None:
    """Raise DatabaseCopyError where this is a copy of the database that the pipeline was set up in."""
    with database.operator() as connection:
        known, found = identities(connection)
    if known is not None and known != found:
        raise DatabaseCopyError(
            f"This database ({found}) is a copy of the one that the pipeline was set up in ({known}): no request goes"
            " to Cliniko, and no alert or webhook is sent. If the database was renamed or moved, or this copy is to"
            " work on its own, run `cliniko-pipeline migrate --adopt`."
        )


def identities(connection: Connection) -> tuple[str | None, str]:
    """Return the identity that is noted, None: none is, and the one that the database has."""
    known = connection.execute(sa.text("select identity from cliniko.database_identity")).scalar_one_or_none()
    return known, _identity(connection)


def copy_problem(database: Database) -> str | None:
    """Return what to say where this is a copy; None: it is none."""
    try:
        require_own(database)
    except DatabaseCopyError as error:
        return str(error)
    return None


def _identity(connection: Connection) -> str:
    may_read = connection.execute(sa.text(_MAY_READ)).scalar_one()
    return connection.execute(sa.text(_IDENTITY if may_read else _WITHOUT_SERVER)).scalar_one()
