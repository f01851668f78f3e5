"""What the errors of PostgreSQL and its drivers mean, in words: what happened, to which object, what to do next.

`FAULTS` is the whole list; docs/errors.md shows it. Messages hold names of objects, never a value, a statement's
parameters or a password.
"""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cliniko_pipeline.errors import (
    ClinikoPipelineError,
    DatabaseSetupError,
    DatabaseUnavailableError,
    DataError,
)


@dataclass(frozen=True)
class Fault:
    """A kind of error that PostgreSQL, a pooler or libpq reports.

    Attributes:
        cause: what happened; a clause without a full stop.
        remedy: what to do next; one sentence or more.
        states: SQLSTATEs, or the characters they begin with.
        words: what libpq or a pooler says on connecting, which has no SQLSTATE; regular expressions on lower case.
        kind: the error that is raised.
        shows_message: whether the server's primary message is shown: in these classes it names objects, never values.
    """

    cause: str
    remedy: str
    states: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    kind: type[ClinikoPipelineError] = DatabaseUnavailableError
    shows_message: bool = False

    def __str__(self) -> str:
        """Return cause and remedy, as they stand in a message."""
        return f"{self.cause}. {self.remedy}"


BY_ITSELF = "Syncs are tried again by themselves."

# The first that matches counts. Words before the general ones: a message may hold several.
CONNECTING = (
    Fault(
        "the user name or the password is wrong",
        "Correct them in DATABASE_URL; percent-encode marks such as @ : / in both.",
        ("28P01",),
        ("password authentication failed", "sasl authentication failed", "authentication failed for user"),
    ),
    Fault(
        "a password is needed, and DATABASE_URL has none",
        "Write it as postgresql://USER:PASSWORD@HOST:5432/DATABASE.",
        words=("no password supplied",),
    ),
    Fault(
        "the pooler knows no such project or user",
        "Copy the pooler's user name from the provider: on Supabase it ends with a dot and the project's reference.",
        words=("tenant or user not found",),
    ),
    Fault(
        "the server has no rule that lets this user in from this machine without encryption",
        "Add sslmode=require to DATABASE_URL, or let this machine's address in (pg_hba.conf).",
        # Where the encrypted connection, which is tried first, was refused as well, encryption is not what is missing.
        words=("^(?!.*ssl encryption).*no pg_hba.conf entry.*no encryption",),
    ),
    Fault(
        "the server has no rule that lets this user in from this machine",
        "Let this machine's address in: the provider's list of allowed addresses, or the server's pg_hba.conf.",
        ("28000",),
        ("no pg_hba.conf entry", "pg_hba.conf rejects"),
    ),
    Fault(
        "sslmode asks for the server's certificate to be verified, and there is no root certificate to do it with",
        "Add sslrootcert=FILE with the provider's root certificate to DATABASE_URL; where a public authority signed"
        " it, the file of this machine's authorities (Debian: /etc/ssl/certs/ca-certificates.crt). sslmode=require"
        " encrypts without verifying.",
        words=("root certificate file", "could not read root certificate"),
    ),
    Fault(
        "no authority in sslrootcert signed the server's certificate, or the certificate has expired",
        # The drivers bring an OpenSSL that knows no folder of this machine.
        "Write sslrootcert=FILE with the provider's root certificate (`system` is an empty list to the drivers, unless"
        " SSL_CERT_FILE names one); sslmode=require encrypts without verifying.",
        words=("certificate verify failed",),
    ),
    Fault(
        "the server's certificate is for another host name",
        "Write the host name in DATABASE_URL as the certificate has it, or use sslmode=verify-ca.",
        words=("does not match host name",),
    ),
    Fault(
        "the server does not offer encrypted connections, and sslmode asks for one",
        "Enable ssl on the server; on a network that is trusted, use sslmode=prefer.",
        words=("server does not support ssl",),
    ),
    Fault(
        "a pooler refuses the start-up parameter `options`",
        "Remove options from DATABASE_URL, or let PgBouncer drop it: ignore_startup_parameters = options.",
        words=("unsupported startup parameter.*options",),
    ),
    Fault(
        "a pooler refuses a start-up parameter",
        "Remove the parameter from DATABASE_URL, or let PgBouncer drop it: ignore_startup_parameters.",
        words=("unsupported startup parameter",),
    ),
    Fault(
        "the pooler cannot reach its server",
        "Look at the pooler's log and at the server behind it.",
        words=("server login fail", "query_wait_timeout", "server_login_retry", "cannot connect to server"),
    ),
    Fault(
        "that database does not exist",
        "Correct the name after the host in DATABASE_URL, or create it with"
        " `createdb --encoding UTF8 --template template0 NAME`.",
        ("3D000",),
        ('database ".*" does not exist', "no such database"),
    ),
    Fault(
        "that user does not exist",
        "Correct the user in DATABASE_URL, or create it: create role USER login password '...'.",
        words=('role ".*" does not exist', "no such user"),
    ),
    Fault(
        "the host has an IPv6 address only, and this machine has no way to it",
        "Use an IPv4 address of the provider's (an add-on, or its pooler in session mode), or give this machine IPv6.",
        words=(
            # Every address that was tried stands in quotes or brackets; none is an IPv4 address.
            r"^(?!.*[\"(](\d+\.){3}\d+[\")]).*[\"(][0-9a-f]*:[0-9a-f:.]+[\")].*(is unreachable|cannot assign|no route)",
            "address family for hostname not supported",
        ),
    ),
    Fault(
        "the connection was refused: nothing listens at that host and port",
        "Check host and port in DATABASE_URL, and that the server runs and listens there (listen_addresses).",
        words=("connection refused",),
    ),
    Fault(
        "the host name is unknown",
        "Check the host in DATABASE_URL; a project that a provider has paused or deleted has no address either.",
        words=(
            "could not translate host name",
            "name or service not known",
            "failed to resolve host",
            "nodename nor servname",
        ),
    ),
    Fault(
        "the connection timed out",
        "Check host and port in DATABASE_URL, and that no firewall drops the connection.",
        words=("timeout", "timed out"),
    ),
    # After those of another address of the same host: without IPv6, its IPv6 address is always unreachable.
    Fault(
        "there is no way through the network to that host",
        "Check the host in DATABASE_URL, this machine's network and the firewalls between.",
        words=("network is unreachable", "no route to host"),
    ),
    Fault(
        "there is no server at that socket",
        "Check the folder in DATABASE_URL (?host=/FOLDER), and that the server runs.",
        words=("no such file or directory",),
    ),
    Fault(
        "the server has no connection left",
        "Raise max_connections (or the pooler's size), or end what holds connections. " + BY_ITSELF,
        ("53300",),
        ("too many", "remaining connection slots", "no more connections allowed", "max clients reached", "maxclients"),
    ),
    Fault("the server shut down or ended the connection", BY_ITSELF, ("57P01", "57P02", "57P04")),
    Fault(
        "a connection in use was lost, as when the server restarts or the network fails",
        BY_ITSELF,
        words=(
            "the connection is (lost|closed)",
            "connection already closed",
            "consuming input failed",
            "^(?!.*connection to server).*server closed the connection",
        ),
    ),
    Fault(
        "the server is starting up or shutting down",
        BY_ITSELF,
        ("57P03",),
        ("starting up", "shutting down", "not yet accepting connections", "in recovery mode"),
    ),
)

READ_ONLY = Fault(
    "the database takes no writes at present: it is read-only",
    "A full disk, a failover and a provider's limit are the usual causes; where none of them is, run"
    " `alter database NAME reset default_transaction_read_only`. " + BY_ITSELF,
    ("25006",),
)

STATEMENTS = (
    Fault("another transaction changed the same rows", BY_ITSELF, ("40001",)),
    Fault("two transactions waited for each other", BY_ITSELF, ("40P01",)),
    Fault(
        "another transaction held a lock for too long",
        "Look for a transaction that stays open (pg_stat_activity). " + BY_ITSELF,
        ("55P03",),
    ),
    Fault("a statement took too long, or was cancelled", BY_ITSELF, ("57014",)),
    Fault("a session was idle for too long, and the server ended it", BY_ITSELF, ("57P05", "25P03", "25P04")),
    READ_ONLY,
    Fault("the server's disk is full", "Make room on it. " + BY_ITSELF, ("53100",)),
    Fault("the server is out of memory", BY_ITSELF, ("53200",)),
    Fault("the server has reached a limit of its own", "Its log says which. " + BY_ITSELF, ("53", "54001")),
    Fault("the server could not read or write a file", "Its log says which. " + BY_ITSELF, ("58030",)),
    Fault("the transaction was rolled back", BY_ITSELF, ("40",)),
    Fault("the connection broke", BY_ITSELF, ("08", "57P")),
    Fault(
        "a privilege is missing",
        "Grant it, to the role that is named or else to the database user, as the owner of that object.",
        ("42501",),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "an object of somebody else has a name that the pipeline needs",
        "Rename that object, or point DATABASE_URL at another database.",
        ("42P07", "42P06", "42710", "42723"),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "something that the pipeline needs is not in the database",
        "",  # `set_up_advice`
        ("42P01", "3F000", "42883", "22023", "42704"),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "a table is not as the pipeline expects it",
        "docs/operations.md lists the columns.",
        ("42703", "42804", "42830"),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "a row that it refers to does not exist",
        "The application's foreign key asks for it: add that row, or relax the constraint.",
        ("23503",),
        kind=DataError,
    ),
    Fault(
        "another row has the same values already, perhaps one of another organization",
        "A unique constraint that leaves out organization_id is the usual cause: extend it, or remove the other row.",
        ("23505",),
        kind=DataError,
    ),
    Fault(
        "a column that the pipeline leaves empty must not be",
        "Give the column a default, or allow null.",
        ("23502",),
        kind=DataError,
    ),
    Fault("a row breaks a rule of the table", "Relax that constraint.", ("23",), kind=DataError),
    Fault(
        "a function or trigger of the application refused it",
        "Look at what it demands of the row.",
        ("P0001",),
        kind=DataError,
    ),
)

HIDDEN_ROWS = Fault(
    "Row-level security would hide rows from the pipeline, and they would be taken for deleted",
    "Let the table's owner exempt the role that reads it (bypassrls, or `alter table ... no force row level security`"
    " where that role owns the table).",
    kind=DatabaseSetupError,
    shows_message=True,
)
"""It has no SQLSTATE of its own."""

HIDDEN_CONTACTS = "CP001"
"""Raised by `cliniko.require_visible_contacts()`, with a message that says what to do."""

FAILED_CONTACTS_FILTER = "CP002"
"""Raised by `cliniko.refuse_contacts_filter()`, with a message that says what to do."""

FAULTS = (*CONNECTING, *STATEMENTS, HIDDEN_ROWS)

ENDS_POOLED_CONNECTIONS = ("25006", "53100", "57P")
"""After these a connection may stay as it is while new ones are well: a session keeps the settings it began with."""

_LONGEST_TEXT = 300
_FUNCTIONS = re.compile(r"function ([\w.\"]+)\(")


SET_UP_ADVICE = "Run `cliniko-pipeline migrate`; `cliniko-pipeline doctor` tells what else is missing."
MIGRATING_ADVICE = "Make what is named, or correct the application's function, trigger or view that refers to it."
_is_migrating: ContextVar[bool] = ContextVar("is_migrating", default=False)


@contextmanager
def migrating() -> Generator[None]:
    """Advise against what is missing something else than the migration that goes on."""
    token = _is_migrating.set(True)
    try:
        yield
    finally:
        _is_migrating.reset(token)


def set_up_advice() -> str:
    """Return what to do where something that the pipeline needs is missing from the database."""
    return MIGRATING_ADVICE if _is_migrating.get() else SET_UP_ADVICE


def translated(error: SQLAlchemyError | psycopg.Error, location: str, role: str | None = None) -> ClinikoPipelineError:
    """Return the pipeline's error for one that a driver of PostgreSQL or SQLAlchemy raised.

    Args:
        error: the error.
        location: database and host, for the message.
        role: the role that the transaction had switched to, if any.
    """
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailableError(
            f"No connection to PostgreSQL became free ({location}): this process uses all it may have; try again."
        )
    return _of_driver((error.orig or error) if isinstance(error, DBAPIError) else error, location, role)


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
    diagnostics = getattr(cause, "diag", None)
    return (getattr(diagnostics, "message_primary", None) or type(cause).__name__).strip()


def ends_pooled_connections(error: BaseException) -> bool:
    """Whether connections that were opened before the error are to be closed."""
    return state_of(error).startswith(ENDS_POOLED_CONNECTIONS)


def is_refused_by_a_policy(cause: BaseException | None) -> bool:
    """Return whether PostgreSQL refused a query with row_security off. It has no SQLSTATE of its own, and its words are
    translated; the function that raises it is the same in all languages.
    """
    return getattr(getattr(cause, "diag", None), "source_function", None) == "check_enable_rls"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_driver(cause: BaseException, location: str, role: str | None) -> ClinikoPipelineError:
    state = state_of(cause)
    if state in {HIDDEN_CONTACTS, FAILED_CONTACTS_FILTER}:
        return DatabaseSetupError(primary_message(cause))
    if is_refused_by_a_policy(cause):
        return DatabaseSetupError(f"{HIDDEN_ROWS.cause}: {primary_message(cause)}. {HIDDEN_ROWS.remedy}")
    fault = _fault(cause, state)
    if _is_of_libpq(cause, state) or fault in CONNECTING:
        return DatabaseUnavailableError(f"PostgreSQL cannot be used ({location}): {_broken(cause, fault)}")
    if fault is not None and fault.kind is DatabaseUnavailableError:
        return DatabaseUnavailableError(f"PostgreSQL gave up a statement ({location}): {fault}")
    return _refused(cause, state, fault, role)


def _broken(cause: BaseException, fault: Fault | None) -> str:
    if fault is not None:
        return str(fault)
    remedy = "Check that the server runs and that DATABASE_URL is right, then try again."
    return f"the connection broke{_said(cause)}. {remedy}"


def _refused(cause: BaseException, state: str, fault: Fault | None, role: str | None) -> ClinikoPipelineError:
    named = f"{type(cause).__name__}, SQLSTATE {state or 'unknown'}{_objects(cause, role)}"
    what = f"PostgreSQL refused a statement ({named})"
    if fault is None:
        return DataError(f"{what}.")
    said = f": {primary_message(cause)}" if fault.shows_message else ""
    return fault.kind(f"{what}: {fault.cause}{said}. {fault.remedy or set_up_advice()}")


def _fault(cause: BaseException, state: str) -> Fault | None:
    if state:
        matching = ((prefix, fault) for fault in FAULTS for prefix in fault.states if state.startswith(prefix))
        return max(matching, key=lambda each: len(each[0]), default=("", None))[1]
    if not _is_of_libpq(cause, state):
        return None
    text = str(cause).lower()
    matching = (fault for fault in CONNECTING if any(re.search(words, text, re.DOTALL) for words in fault.words))
    return next(matching, None)


def _is_of_libpq(cause: BaseException, state: str) -> bool:
    # What libpq reports itself has no state.
    return not state and any(each.__name__ == "OperationalError" for each in type(cause).__mro__)


def _said(cause: BaseException) -> str:
    """Return what libpq said, in brackets, shortened. It names hosts, users and files."""
    text = " ".join(str(cause).split())
    # The only text of libpq's that can quote a password is one on a connection string that it cannot read.
    return f" ({text[:_LONGEST_TEXT]})" if text and "connection info string" not in text else ""


def _objects(cause: BaseException, role: str | None) -> str:
    """Return the names of what the error is about, each with its kind. They hold no values."""
    diagnostics: Any = getattr(cause, "diag", None)

    def named(attribute: str) -> str | None:
        return getattr(diagnostics, attribute, None)

    table = ".".join(filter(None, (named("schema_name"), named("table_name"))))
    functions = _FUNCTIONS.findall(named("context") or "")
    parts = {
        "constraint": named("constraint_name"),
        "column": named("column_name"),
        "table": table,
        "type": named("datatype_name"),
        "function": functions[0] if functions else None,
    }
    named_parts = "".join(f", {kind} {name}" for kind, name in parts.items() if name)
    return named_parts + (f", as {role}" if role else "")
