"""The translation of database errors into messages with cause, objects and remedy.

Messages contain names of objects, but never a value, a statement's parameters or a password.
"""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres.server.faults import (
    CONNECTING,
    FAILED_CONTACTS_FILTER,
    FAULTS,
    HIDDEN_CONTACTS,
    Fault,
    named,
)

BUSY = ("55P03", "40001", "40P01")
"""The SQLSTATEs of conflicts with other transactions."""

ENDS_POOLED_CONNECTIONS = ("25006", "53100", "57P")
"""Prefixes of SQLSTATEs after which open sessions may keep failing while new sessions work."""

_MAX_TEXT = 300
_FUNCTIONS = re.compile(r"function ([\w.\"]+)\(")
_VERB = re.compile(r'SQL statement "\s*(select|insert|update|delete)\b', re.IGNORECASE)
_DENIED = re.compile(r"permission denied for (?P<kind>[a-z ]+?) (?P<name>\S+)$")
_PRIVILEGES = {"schema": "usage", "sequence": "usage", "function": "execute", "database": "create, temporary"}
_RAISED_BY_A_FUNCTION = "exec_stmt_raise"
"""The server's function that executes `raise`. The application writes the message, which may contain values."""
_FUNCTIONS_OF_THE_USER = re.compile(r"function cliniko\.(organization_contacts|contacts_fingerprint|contact_absence)\(")
"""The functions that run as the database user instead of the organization role."""

_is_set_up: ContextVar[bool] = ContextVar("is_set_up", default=False)


@contextmanager
def already_set_up() -> Generator[None]:
    """Make errors about missing objects use `Fault.otherwise`, because `migrate` is running or complete."""
    token = _is_set_up.set(True)
    try:
        yield
    finally:
        _is_set_up.reset(token)


def translated(
    error: SQLAlchemyError | psycopg.Error, location: str, role: str | None = None, user: str | None = None
) -> ClinikoPipelineError:
    """Return the ClinikoPipelineError for an error of psycopg or SQLAlchemy.

    Args:
        error: the error.
        location: database and host, for the message.
        role: the role that executed the statement, if it is known.
        user: the database user, if it is known.
    """
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailableError(
            f"No connection to PostgreSQL is free ({location}): this process uses all of its connections; try again."
        )
    cause = (error.orig or error) if isinstance(error, DBAPIError) else error
    state = state_of(cause)
    if state in {HIDDEN_CONTACTS, FAILED_CONTACTS_FILTER}:
        return DatabaseSetupError(primary_message(cause))
    fault = _fault(cause, state)
    if fault in CONNECTING:
        said = _said(cause) if fault.shows_message else ""
        return DatabaseUnavailableError(f"PostgreSQL cannot be used ({location}): {fault.cause}{said}. {fault.remedy}")
    if fault.kind is DatabaseUnavailableError:
        return DatabaseUnavailableError(f"PostgreSQL gave up a statement ({location}): {fault}")
    statement = error.statement if isinstance(error, DBAPIError) else None
    return _refused(cause, fault, _names(cause, statement or "", role or user, user))


def database_error_behind(error: BaseException, location: str) -> ClinikoPipelineError | None:
    """Return the ClinikoPipelineError for the database error in the error's chain, if there is one."""
    for cause in _chain(error):
        if isinstance(cause, ClinikoPipelineError):
            return cause
        if isinstance(cause, SQLAlchemyError | psycopg.Error):
            return translated(cause, location)
    return None


def state_of(error: BaseException) -> str:
    """Return the SQLSTATE of an error of a driver or SQLAlchemy, or an empty text."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""


def primary_message(cause: BaseException) -> str:
    """Return the server's primary message, which may contain values."""
    return (_diagnosed(cause, "message_primary") or type(cause).__name__).strip()


def ends_pooled_connections(error: BaseException) -> bool:
    """Return whether connections opened before the error must be closed."""
    return state_of(error).startswith(ENDS_POOLED_CONNECTIONS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _fault(cause: BaseException, state: str) -> Fault:
    # Errors of libpq, as opposed to the server, have no SQLSTATE.
    if not state and any(kind.__name__ == "OperationalError" for kind in type(cause).__mro__):
        text = str(cause).lower()
        return next(fault for fault in CONNECTING if any(re.search(words, text, re.DOTALL) for words in fault.words))
    signature = f"{_diagnosed(cause, 'source_function')}:{primary_message(cause)}"
    matching = (
        (prefix, fault)
        for fault in FAULTS
        for prefix in fault.states
        if state.startswith(prefix) and re.search(fault.signature, signature)
    )
    return max(matching, key=lambda match: len(match[0]))[1]


def _refused(cause: BaseException, fault: Fault, names: dict[str, str]) -> ClinikoPipelineError:
    kinds = ("constraint", "column", "table", "type", "function")
    objects = "".join(f", {kind} {names[kind]}" for kind in kinds if kind in names)
    as_role = f", as {names['role']}" if "role" in names else ""
    what = f"{type(cause).__name__}, SQLSTATE {state_of(cause) or 'unknown'}{objects}{as_role}"
    is_of_a_function = _diagnosed(cause, "source_function") == _RAISED_BY_A_FUNCTION
    said = f": {primary_message(cause)}" if fault.shows_message and not is_of_a_function else ""
    # `migrate` does not help with errors in the application's functions, or while it is running or complete.
    remedy = fault.otherwise if fault.otherwise and ("function" in names or _is_set_up.get()) else fault.remedy
    return fault.kind(f"PostgreSQL refused a statement ({what}): {fault.cause}{said}. {named(remedy, names)}")


def _said(cause: BaseException) -> str:
    """Return libpq's text, shortened and in brackets. The text contains hosts, users and files."""
    text = " ".join(str(cause).split())
    # A text about an unreadable connection string is left out, because it can contain the password.
    return f" ({text[:_MAX_TEXT]})" if text and "connection info string" not in text else ""


def _diagnosed(cause: BaseException, attribute: str) -> str:
    diagnostics: Any = getattr(cause, "diag", None)
    return getattr(diagnostics, attribute, None) or ""


def _names(cause: BaseException, statement: str, role: str | None, user: str | None) -> dict[str, str]:
    """Return the names of the error's objects, by kind."""
    context = _diagnosed(cause, "context")
    theirs = [name for name in _FUNCTIONS.findall(context) if not name.startswith("cliniko.")]
    table = ".".join(filter(None, (_diagnosed(cause, "schema_name"), _diagnosed(cause, "table_name"))))
    names = {
        "constraint": _diagnosed(cause, "constraint_name"),
        "column": _diagnosed(cause, "column_name"),
        "table": table,
        "type": _diagnosed(cause, "datatype_name"),
        "function": theirs[0] if theirs else "",
        "role": (user if _FUNCTIONS_OF_THE_USER.search(context) else role) or "",
        **_denied(primary_message(cause), context, statement),
    }
    return {kind: name for kind, name in names.items() if name}


def _denied(message: str, context: str, statement: str) -> dict[str, str]:
    """Return the object and the missing privilege in the syntax of `grant`."""
    match = _DENIED.search(message)
    if match is None:
        return {}
    kind, name = match["kind"], match["name"]
    verb = _VERB.search(context)
    privilege = _PRIVILEGES.get(kind) or (verb[1].lower() if verb else "select, insert, update, delete")
    # The message has the name without the schema. The context or the statement may have both.
    qualified = re.search(rf'[\w"]+\."?{re.escape(name)}"?(?!\w)', f"{context} {statement}")
    kind = "" if kind in {"table", "view"} else f"{kind} "
    return {"object": f"{kind}{qualified[0] if qualified else name}", "privilege": privilege}
