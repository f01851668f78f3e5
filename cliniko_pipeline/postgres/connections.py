"""How a new connection to PostgreSQL is made ready, the same for both drivers.

What a session needs is set or verified on the connection itself, by statements. Nothing depends on start-up
parameters: poolers drop some of them.
"""

from typing import Any, Protocol

from cliniko_pipeline.errors import DatabaseSetupError


class DriverConnection(Protocol):
    """What the connections of psycopg and psycopg2 have in common."""

    def cursor(self) -> Any:
        """Return a new cursor."""
        ...

    def commit(self) -> None:
        """End the transaction."""
        ...


def enter_schema(connection: DriverConnection, schema: str) -> None:
    """Make the schema the connection's search path, and verify that it is.

    Raises DatabaseSetupError where it is not: the next table would be made in another schema.
    """
    _ask(connection, "select set_config('search_path', quote_ident(%s), false)", schema)
    # In a transaction of its own, as all that follows.
    found = _ask(connection, "select current_schema()")
    if found != schema:
        raise DatabaseSetupError(
            f"The schema {schema} cannot be used, so nothing is stored in it: it is missing, the database user lacks"
            f" the privilege (`grant usage, create on schema {schema} to USER`), or a pooler before PostgreSQL"
            " does not keep a session's settings (connect in session mode, or directly)."
        )


def _ask(connection: DriverConnection, text: str, *parameters: object) -> Any:
    """Execute a statement in a transaction of its own; return the first value of its result."""
    with connection.cursor() as cursor:
        cursor.execute(text, parameters)
        (value, *_) = cursor.fetchone()
    connection.commit()
    return value
