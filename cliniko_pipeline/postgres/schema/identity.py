"""`cliniko.database_identity`: the identity of the database that the pipeline was set up in.

The identity reveals a copy, such as a staging database. A copy must not use production's API keys, webhooks and alerts.

The identity consists of the database's name and the server's system identifier. A restored dump and a database created
from a template have another name or another identifier. A restart, another host name and a failover change neither.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DatabaseCopyError
from cliniko_pipeline.postgres.engine import Database

_MAY_READ = "select has_function_privilege('pg_control_system()', 'execute')"
_IDENTITY = "select current_database() || ' of server ' || system_identifier from pg_control_system()"
_WITHOUT_SERVER = "select current_database() || ' with oid ' || oid from pg_database where datname = current_database()"


def adopt(connection: Connection, *, is_forced: bool) -> None:
    """Store this database's identity if none is stored yet; with `is_forced`, replace the stored one."""
    conflict = "update set identity = excluded.identity, adopted_at = now()" if is_forced else "nothing"
    connection.execute(
        sa.text(
            "insert into cliniko.database_identity (identity) values (:identity)"
            f" on conflict (is_only_row) do {conflict}"
        ),
        {"identity": _identity(connection)},
    )


def require_own(database: Database) -> None:
    """Raise DatabaseCopyError if this is a copy of the database that the pipeline was set up in."""
    with database.operator() as connection:
        known, found = identities(connection)
    if known is not None and known != found:
        raise DatabaseCopyError(
            f"This database ({found}) is a copy of the one that the pipeline was set up in ({known}): no request goes"
            " to Cliniko, and no alert or webhook is sent. If the database was renamed or moved, or if this copy shall"
            " sync independently, run `cliniko-pipeline migrate --adopt`."
        )


def identities(connection: Connection) -> tuple[str | None, str]:
    """Return the stored identity, if there is one, and the database's actual identity."""
    known = connection.execute(sa.text("select identity from cliniko.database_identity")).scalar_one_or_none()
    return known, _identity(connection)


def copy_problem(database: Database) -> str | None:
    """Return the error message if this is a copy, else None."""
    try:
        require_own(database)
    except DatabaseCopyError as error:
        return str(error)
    return None


def _identity(connection: Connection) -> str:
    may_read = connection.execute(sa.text(_MAY_READ)).scalar_one()
    return connection.execute(sa.text(_IDENTITY if may_read else _WITHOUT_SERVER)).scalar_one()
