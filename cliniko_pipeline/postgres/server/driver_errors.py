"""The errors of PostgreSQL and its drivers as the pipeline's: what happened, to which object, what to do next.

Messages hold names of objects, never a value, a statement's parameters or a password.
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
"""Only another transaction was in the way."""

ENDS_POOLED_CONNECTIONS = ("25006", "53100", "57P")
"""After these a connection may stay as it is while new ones are well: a session keeps the settings it began with."""

_LONGEST_TEXT = 300
_FUNCTIONS = re.compile(r"function ([\w.\"]+)\(")
_VERB = re.compile(r'SQL statement "\s*(select|insert|update|delete)\b', re.IGNORECASE)
_DENIED = re.compile(r"permission denied for (?P<kind>[a-z ]+?) (?P<name>\S+)$")
_PRIVILEGES = {"schema": "usage", "sequence": "usage", "function": "execute", "database": "create, temporary"}
_RAISED_BY_A_FUNCTION = "exec_stmt_raise"
"""The function of the server's that carries out `raise`: such a message may hold anything, whatever its SQLSTATE."""
_FUNCTIONS_OF_THE_USER = re.compile(r"function cliniko\.(organization_contacts|contacts_fingerprint|contact_absence)\(")
"""Those that run with the rights of the database user."""

_is_set_up: ContextVar[bool] = ContextVar("is_set_up", default=False)


@contextmanager
def already_set_up() -> Generator[None]:
    """Advise something else than `migrate` against what is missing: it is under way, or has nothing left to do."""
    token = _is_set_up.set(True)
    try:
        yield
    finally:
        _is_set_up.reset(token)


def translated(
    error: SQLAlchemyError | psycopg.Error, location: str, role: str | None = None, user: str | None = None
) -> ClinikoPipelineError:
    """Return the pipeline's error for one that a driver of PostgreSQL or SQLAlchemy raised.

    Args:
        error: the error.
        location: database and host, for the message.
        role: the role that the statement was carried out as, where it is known.
        user: the database user, where it is known.
    """
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailableError(
            f"No connection to PostgreSQL became free ({location}): this process uses all it may have; try again."
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
    """Return the pipeline's error where a database's led to this one, as in what Dagster raises; otherwise None."""
    for each in _chain(error):
        if isinstance(each, ClinikoPipelineError):
            return each
        if isinstance(each, SQLAlchemyError | psycopg.Error):
            return translated(each, location)
    return None


def state_of(error: BaseException) -> str:
    """Return the SQLSTATE of an error, of the driver's or of SQLAlchemy's; blank where it has none."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""


def primary_message(cause: BaseException) -> str:
    """Return the first line of what the server says. It may hold values, but in classes that name objects only."""
    return (_diagnosed(cause, "message_primary") or type(cause).__name__).strip()


def ends_pooled_connections(error: BaseException) -> bool:
    """Whether connections that were opened before the error are to be closed."""
    return state_of(error).startswith(ENDS_POOLED_CONNECTIONS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _fault(cause: BaseException, state: str) -> Fault:
    # What libpq reports itself has no state.
    if not state and any(each.__name__ == "OperationalError" for each in type(cause).__mro__):
        text = str(cause).lower()
        return next(each for each in CONNECTING if any(re.search(words, text, re.DOTALL) for words in each.words))
    signature = f"{_diagnosed(cause, 'source_function')}:{primary_message(cause)}"
    matching = (
        (prefix, fault)
        for fault in FAULTS
        for prefix in fault.states
        if state.startswith(prefix) and re.search(fault.signature, signature)
    )
    return max(matching, key=lambda each: len(each[0]))[1]


def _refused(cause: BaseException, fault: Fault, names: dict[str, str]) -> ClinikoPipelineError:
    kinds = ("constraint", "column", "table", "type", "function")
    objects = "".join(f", {kind} {names[kind]}" for kind in kinds if kind in names)
    as_role = f", as {names['role']}" if "role" in names else ""
    what = f"{type(cause).__name__}, SQLSTATE {state_of(cause) or 'unknown'}{objects}{as_role}"
    is_of_a_function = _diagnosed(cause, "source_function") == _RAISED_BY_A_FUNCTION
    said = f": {primary_message(cause)}" if fault.shows_message and not is_of_a_function else ""
    # Nor does `migrate` correct a function of the application's.
    remedy = fault.otherwise if fault.otherwise and ("function" in names or _is_set_up.get()) else fault.remedy
    return fault.kind(f"PostgreSQL refused a statement ({what}): {fault.cause}{said}. {named(remedy, names)}")


def _said(cause: BaseException) -> str:
    """Return what libpq said, in brackets, shortened. It names hosts, users and files."""
    text = " ".join(str(cause).split())
    # The only text of libpq's that can quote a password is one on a connection string that it cannot read.
    return f" ({text[:_LONGEST_TEXT]})" if text and "connection info string" not in text else ""


def _diagnosed(cause: BaseException, attribute: str) -> str:
    diagnostics: Any = getattr(cause, "diag", None)
    return getattr(diagnostics, attribute, None) or ""


def _names(cause: BaseException, statement: str, role: str | None, user: str | None) -> dict[str, str]:
    """Return the names of what the error is about, by their kinds. They hold no values."""
    context = _diagnosed(cause, "context")
    theirs = [each for each in _FUNCTIONS.findall(context) if not each.startswith("cliniko.")]
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
    """Return the object that must not be used, as `grant` takes it, and the privilege for it."""
    match = _DENIED.search(message)
    if match is None:
        return {}
    kind, name = match["kind"], match["name"]
    verb = _VERB.search(context)
    privilege = _PRIVILEGES.get(kind) or (verb[1].lower() if verb else "select, insert, update, delete")
    # The message has no schema, but the statement may.
    qualified = re.search(rf'[\w"]+\."?{re.escape(name)}"?(?!\w)', f"{context} {statement}")
    kind = "" if kind in {"table", "view"} else f"{kind} "
    return {"object": f"{kind}{qualified[0] if qualified else name}", "privilege": privilege}
