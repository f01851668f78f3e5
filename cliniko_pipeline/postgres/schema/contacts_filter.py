"""`cliniko.contacts_filter`: the operator's condition that contacts must meet to be used.

The functions that read contacts are in the database and cannot read the setting CLINIKO_CONTACTS_FILTER. Therefore
`cliniko-pipeline migrate` stores the setting, and every command compares it with the stored condition.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from cliniko_pipeline.errors import DatabaseSetupError, SettingsError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.server.driver_errors import primary_message, state_of

SETTING = "CLINIKO_CONTACTS_FILTER"

_OF_THE_CONDITION = ("22", "42")
"""Classes of SQLSTATE for an invalid condition: data exceptions of its constants, and wrong syntax or names."""

# The condition is planned on a row of nulls instead of the table, so that PostgreSQL's message contains no contact's
# values. `offset 0` keeps the planner from evaluating the condition with the nulls.
_PLANNED = "explain select from (select (null::public.contacts).* offset 0) as contacts where ({condition})"


def require_valid(connection: Connection, condition: str | None) -> None:
    """Raise SettingsError, with PostgreSQL's message, if the condition is invalid for public.contacts."""
    if condition is None:
        return
    attempt = connection.begin_nested()
    try:
        # The functions that read contacts set the same search path.
        connection.exec_driver_sql("set local search_path = pg_catalog, pg_temp")
        connection.exec_driver_sql(_PLANNED.format(condition=condition.replace("%", "%%")))
    except DBAPIError as error:
        if not state_of(error).startswith(_OF_THE_CONDITION) or error.orig is None:
            raise
        said = primary_message(error.orig)
    else:
        return
    finally:
        attempt.rollback()
    raise SettingsError(
        f"{SETTING} must be an SQL condition over the columns of public.contacts, with other tables and functions of"
        f" the application qualified by their schema; PostgreSQL says: {said}. Nothing was changed."
    )


def store(connection: Connection, condition: str | None) -> bool:
    """Store the condition, or delete the stored one if None; return whether it changed."""
    before = _stored(connection)
    if before != condition:
        connection.execute(sa.text("delete from cliniko.contacts_filter"))
        if condition is not None:
            connection.execute(
                sa.text("insert into cliniko.contacts_filter (condition) values (:condition)"), {"condition": condition}
            )
    return before != condition


def require_stored(database: Database, condition: str | None) -> None:
    """Raise DatabaseSetupError if the stored condition differs from the setting.

    The schema must be current.
    """
    with database.operator() as connection:
        stored = _stored(connection)
    if stored != condition:
        state = "is set, but the database has no filter" if stored is None else "differs from the database's filter"
        state = "is not set, but the database has a filter" if condition is None else state
        raise DatabaseSetupError(
            f"{SETTING} {state}: run `cliniko-pipeline migrate` with the correct setting, which it stores."
        )


def _stored(connection: Connection) -> str | None:
    return connection.execute(sa.text("select condition from cliniko.contacts_filter")).scalar_one_or_none()
