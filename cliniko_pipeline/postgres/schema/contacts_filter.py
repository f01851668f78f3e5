"""`cliniko.contacts_filter`: the condition of the operator's that contacts must meet to count.

The setting CLINIKO_CONTACTS_FILTER is in the environment, the functions that read contacts are in the database:
`cliniko-pipeline migrate` takes the setting over, and every command compares the two.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from cliniko_pipeline.errors import DatabaseSetupError, SettingsError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.server.driver_errors import primary_message, state_of

SETTING = "CLINIKO_CONTACTS_FILTER"

_OF_THE_CONDITION = ("22", "42")
"""Classes of SQLSTATE: data exceptions (of constants, here), and errors of syntax and names."""

# A row of nulls, not the table: what PostgreSQL says of the condition then holds no value of a contact. The offset
# keeps the condition from being computed with the nulls.
_PLANNED = "explain select from (select (null::public.contacts).* offset 0) as contacts where ({condition})"


def require_valid(connection: Connection, condition: str | None) -> None:
    """Raise SettingsError, with what PostgreSQL says, where the text is no condition over public.contacts."""
    if condition is None:
        return
    attempt = connection.begin_nested()
    try:
        # As in the functions that read contacts.
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
    """Let this condition hold from now on, or none; return whether another one did before."""
    before = _stored(connection)
    if before != condition:
        connection.execute(sa.text("delete from cliniko.contacts_filter"))
        if condition is not None:
            connection.execute(
                sa.text("insert into cliniko.contacts_filter (condition) values (:condition)"), {"condition": condition}
            )
    return before != condition


def require_stored(database: Database, condition: str | None) -> None:
    """Raise DatabaseSetupError where the database has another condition than the setting. Needs a schema that is
    current.
    """
    with database.operator() as connection:
        stored = _stored(connection)
    if stored != condition:
        state = "is set, and the database has none" if stored is None else "is not the one that the database has"
        state = "is not set, and the database has one" if condition is None else state
        raise DatabaseSetupError(
            f"{SETTING} {state}: run `cliniko-pipeline migrate` with the setting that is meant; it takes it over."
        )


def _stored(connection: Connection) -> str | None:
    return connection.execute(sa.text("select condition from cliniko.contacts_filter")).scalar_one_or_none()
