"""The translation of PostgreSQL's and its drivers' errors: what happened, to which object, what to do next.

Messages name objects. They never hold a value, a statement's parameters or a password.
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
"""Conflicts with another transaction."""

ENDS_POOLED_CONNECTIONS = ("25006", "53100", "57P")
"""Errors after which old sessions may keep failing while new ones work."""

_MAX_TEXT = 300
_FUNCTIONS = re.compile(r"function ([\w.\"]+)\(")
_VERB = re.compile(r'SQL statement "\s*(select|insert|update|delete)\b', re.IGNORECASE)
_DENIED = re.compile(r"permission denied for (?P<kind>[a-z ]+?) (?P<name>\S+)$")
_PRIVILEGES = {"schema": "usage", "sequence": "usage", "function": "execute", "database": "create, temporary"}
_RAISED_BY_A_FUNCTION = "exec_stmt_raise"
"""The server's function for `raise`, whose message may hold anything."""
_FUNCTIONS_OF_THE_USER = re.compile(r"function cliniko\.(organization_contacts|contacts_fingerprint|contact_absence)\(")
"""The functions that run as the database user."""

_is_set_up: ContextVar[bool] = ContextVar("is_set_up", default=False)


@contextmanager
def already_set_up() -> Generator[None]:
    """Make errors about missing objects advise something else than `migrate`, which is running or complete."""
    token = _is_set_up.set(True)
    try:
        yield
    finally:
        _is_set_up.reset(token)


def translated(
    error: SQLAlchemyError | psycopg.Error, location: str, role: str | None = None, user: str | None = None
) -> ClinikoPipelineError:
    """Return the pipeline's error for a driver's or SQLAlchemy's.

    Args:
        error: the error.
        location: database and host, for the message.
        role: the role that executed the statement, where known.
        user: the database user, where known.
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
    """Return the pipeline's error for the database error in this error's chain, if there is one."""
    for cause in _chain(error):
        if isinstance(cause, ClinikoPipelineError):
            return cause
        if isinstance(cause, SQLAlchemyError | psycopg.Error):
            return translated(cause, location)
    return None


def state_of(error: BaseException) -> str:
    """Return the SQLSTATE of a driver's or SQLAlchemy's error; blank where it has none."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""


def primary_message(cause: BaseException) -> str:
    """Return the server's primary message, which may hold values."""
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
    # Errors of libpq itself have no SQLSTATE.
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
    # `migrate` cannot correct the application's functions either.
    remedy = fault.otherwise if fault.otherwise and ("function" in names or _is_set_up.get()) else fault.remedy
    return fault.kind(f"PostgreSQL refused a statement ({what}): {fault.cause}{said}. {named(remedy, names)}")


def _said(cause: BaseException) -> str:
    """Return libpq's text in brackets, shortened. It names hosts, users and files."""
    text = " ".join(str(cause).split())
    # Only libpq's text about an unreadable connection string can quote a password.
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
    """Return the object and the missing privilege, as `grant` takes them."""
    match = _DENIED.search(message)
    if match is None:
        return {}
    kind, name = match["kind"], match["name"]
    verb = _VERB.search(context)
    privilege = _PRIVILEGES.get(kind) or (verb[1].lower() if verb else "select, insert, update, delete")
    # The message lacks the schema, which the statement may have.
    qualified = re.search(rf'[\w"]+\."?{re.escape(name)}"?(?!\w)', f"{context} {statement}")
    kind = "" if kind in {"table", "view"} else f"{kind} "
    return {"object": f"{kind}{qualified[0] if qualified else name}", "privilege": privilege}
