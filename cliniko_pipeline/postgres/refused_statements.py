"""What PostgreSQL says of a statement that it refused, by the objects' names: which one, as which role, what to do.

No value of a row: only messages of classes that name objects are shown as they are.
"""

import re
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cliniko_pipeline.postgres.driver_errors import FAILED_CONTACTS_FILTER, HIDDEN_CONTACTS, is_refused_by_a_policy
from cliniko_pipeline.postgres.engine import LOCK_NOT_AVAILABLE

Refused = SQLAlchemyError | psycopg.Error

_PERMISSION = re.compile(r"permission denied for (?P<kind>[a-z ]+?) (?P<name>\S+)$")
_FUNCTION = re.compile(r"PL/pgSQL function (?P<name>[^\s(]+)\(")
_VERB = re.compile(r'SQL statement "\s*(?P<verb>select|insert|update|delete)\b', re.IGNORECASE)
# Access and names, integrity, state of the object, what is not supported, cardinality of `on conflict`.
_NAMES_OBJECTS_ONLY = ("42", "23", "25", "55", "0A", "21", "2B", "3F")
_READ_ONLY = "25006"


@dataclass(frozen=True)
class Refusal:
    """A refused statement.

    Attributes:
        what: what PostgreSQL says, with the names of all objects; without a full stop.
        remedy: what to do, one sentence; empty where only the reader can know.
        is_busy: whether only somebody else's lock was in the way.
    """

    what: str
    remedy: str
    is_busy: bool = False

    def __str__(self) -> str:
        return f"{self.what}.{' ' if self.remedy else ''}{self.remedy}"


def is_lost_connection(error: Refused) -> bool:
    """Return whether it was not the statement that failed, but the connection."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None) or ""
    return isinstance(cause, psycopg.Error) and (not state or state[:2] in {"08", "57", "53", "28"})


def refusal(connection: Connection, error: Refused, role: str) -> Refusal:
    """Return what was refused to the role. The connection must be usable: it is asked for the names of schemas."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return Refusal(f"the statement cannot be sent ({type(error).__name__})", "")
    state = cause.sqlstate or ""
    if state == LOCK_NOT_AVAILABLE:
        return Refusal("another transaction holds a lock", "Try again when it has ended.", is_busy=True)
    if state == HIDDEN_CONTACTS or is_refused_by_a_policy(cause):
        return Refusal("row-level security hides rows of public.contacts", "`cliniko-pipeline doctor` says what to do.")
    if state == FAILED_CONTACTS_FILTER:
        return Refusal(
            "the condition in CLINIKO_CONTACTS_FILTER fails", "Correct it, and run `cliniko-pipeline migrate`."
        )
    message = cause.diag.message_primary or "" if state[:2] in _NAMES_OBJECTS_ONLY else type(cause).__name__
    what = f"{message}{_objects(cause, message)} (as role {role}, SQLSTATE {state or 'unknown'})"
    return Refusal(what, _remedy(connection, cause, state, role))


def _objects(cause: psycopg.Error, message: str) -> str:
    found = {
        "table": ".".join(filter(None, (cause.diag.schema_name, cause.diag.table_name))),
        "column": cause.diag.column_name,
        "constraint": cause.diag.constraint_name,
        "function": _function(cause),
    }
    named = [f"{kind} {name}" for kind, name in found.items() if name and f'"{name}"' not in message]
    return f", {', '.join(named)}" if named else ""


def _function(cause: psycopg.Error) -> str | None:
    """The innermost function, where one of PL/pgSQL was under way."""
    match = _FUNCTION.search(cause.diag.context or "")
    return match["name"] if match else None


def _remedy(connection: Connection, cause: psycopg.Error, state: str, role: str) -> str:
    diag = cause.diag
    table = f"{diag.schema_name}.{diag.table_name}"
    match state:
        case "42501":
            return _privilege_remedy(connection, cause, role)
        case "23502":
            return f"Run `alter table {table} alter column {diag.column_name} set default ...`, or `drop not null`."
        case "23505":
            return (
                f"A row that the organization cannot see has the same key: remove it, or drop {diag.constraint_name}"
                " where another organization may have the same."
            )
        case "23503" | "23514" | "23P01":
            return f"Drop or loosen the constraint {diag.constraint_name} of {table}."
        case "25006":
            return "Let the database take writes: `default_transaction_read_only` is on, or this server is a standby."
        case _:
            function = _function(cause)
            return f"Mend the function {function}." if function and not function.startswith("cliniko.") else ""


def _privilege_remedy(connection: Connection, cause: psycopg.Error, role: str) -> str:
    match = _PERMISSION.search(cause.diag.message_primary or "")
    if match is None:  # a policy
        return f"Let a policy of that table permit what {role} writes (`create policy ... to {role}`)."
    kind, name = match["kind"], match["name"]
    privileges = {"schema": "usage", "sequence": "usage", "function": "execute"}
    verb = _VERB.search(cause.diag.context or "")
    privilege = privileges.get(kind) or (verb["verb"].lower() if verb else "select, insert, update, delete")
    what = {"table": "", "view": ""}.get(kind, f"{kind} ") + (_qualified(connection, name) or name)
    function = _function(cause)
    otherwise = f", or make {function} `security definer`" if function and not function.startswith("cliniko.") else ""
    return f"Run `grant {privilege} on {what} to {role}`{otherwise}."


def _qualified(connection: Connection, name: str) -> str | None:
    """The name with its schema, where only one relation is called so."""
    found = connection.execute(
        sa.text(
            "select format('%I.%I', nspname, relname) from pg_class"
            " join pg_namespace on pg_namespace.oid = relnamespace where relname = :name and nspname !~ '^pg_'"
        ),
        {"name": name},
    ).scalars()
    names = list(found)
    return names[0] if len(names) == 1 else None
