"""The causes and remedies of errors of PostgreSQL, poolers and libpq, listed in docs/errors.md.

`driver_errors` replaces names in braces by the names of the error's objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError, DatabaseUnavailableError, DataError


@dataclass(frozen=True)
class Fault:
    """A kind of error that PostgreSQL, a pooler or libpq reports.

    Attributes:
        cause: what happened, as a clause without a full stop.
        remedy: what to do next. `{table}` is replaced by the name of the error's table.
        states: SQLSTATEs or their prefixes.
        words: regular expressions for lower-case texts of libpq or a pooler, which have no SQLSTATE.
        signature: a regular expression that distinguishes faults of the same SQLSTATE. It is applied to the name of the
            server's C function, a colon and the message. Function names are the same in all languages.
        kind: the class of the error that is raised.
        shows_message: whether the server's primary message is shown, which requires that it contains no values.
        otherwise: the remedy where `migrate` cannot help; blank if `remedy` applies there, too.
    """

    cause: str
    remedy: str
    states: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    signature: str = ""
    kind: type[ClinikoPipelineError] = DatabaseUnavailableError
    shows_message: bool = False
    otherwise: str = ""

    def __str__(self) -> str:
        """Return cause and remedy without names of objects."""
        return f"{self.cause}. {named(self.remedy, {})}"


class _Names(dict[str, str]):
    """The names of objects by kind. An unknown name is replaced by its kind in capitals."""

    def __missing__(self, kind: str) -> str:
        return kind.upper()


def named(text: str, names: Mapping[str, str]) -> str:
    """Return the text with names in place of the braces."""
    return text.format_map(_Names(names))


BY_ITSELF = "Syncs are retried automatically."

# The first match applies, so specific words come before general words.
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
        "Add sslmode=require to DATABASE_URL, or allow this machine's address without encryption in pg_hba.conf.",
        # libpq tries an encrypted connection first. If this was refused, too, the next fault applies.
        words=("^(?!.*ssl encryption).*no pg_hba.conf entry.*no encryption",),
    ),
    Fault(
        "the server has no rule that lets this user in from this machine",
        "Allow this machine's address in the provider's list of allowed addresses or in the server's pg_hba.conf.",
        ("28000",),
        ("no pg_hba.conf entry", "pg_hba.conf rejects"),
    ),
    Fault(
        "sslmode requires that the server's certificate is verified, but there is no root certificate",
        "Add sslrootcert=FILE with the provider's root certificate to DATABASE_URL. If a public authority signed the"
        " server's certificate, use this machine's file of authorities (Debian: /etc/ssl/certs/ca-certificates.crt)."
        " sslmode=require encrypts without verification.",
        words=("root certificate file", "could not read root certificate"),
    ),
    Fault(
        "no authority in sslrootcert signed the server's certificate, or the certificate has expired",
        # The drivers contain an OpenSSL that does not know this machine's folders.
        "Set sslrootcert=FILE to the provider's root certificate. sslrootcert=system works only if SSL_CERT_FILE is set"
        " to a file of authorities. sslmode=require encrypts without verification.",
        words=("certificate verify failed",),
    ),
    Fault(
        "the server's certificate is for another host name",
        "Use the certificate's host name in DATABASE_URL, or use sslmode=verify-ca.",
        words=("does not match host name",),
    ),
    Fault(
        "the server does not offer encrypted connections, but sslmode requires encryption",
        "Enable ssl on the server. On a trusted network, use sslmode=prefer.",
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
        "Correct the database's name after the host in DATABASE_URL, or create the database with"
        " `createdb --encoding UTF8 --template template0 NAME`.",
        ("3D000",),
        ('database ".*" does not exist', "no such database"),
    ),
    Fault(
        "that user does not exist",
        "Correct the user in DATABASE_URL, or create the user: create role USER login password '...'.",
        words=('role ".*" does not exist', "no such user"),
    ),
    Fault(
        "the host has only an IPv6 address, which this machine cannot reach",
        "Use an IPv4 address from the provider (an add-on, or the pooler in session mode), or give this machine IPv6.",
        words=(
            # All addresses in the text, which are in quotes or brackets, are IPv6 addresses.
            r"^(?!.*[\"(](\d+\.){3}\d+[\")]).*[\"(][0-9a-f]*:[0-9a-f:.]+[\")].*(is unreachable|cannot assign|no route)",
            "address family for hostname not supported",
        ),
    ),
    Fault(
        "the connection was refused, because no server listens at that host and port",
        "Check host and port in DATABASE_URL, and that the server runs and listens there (listen_addresses).",
        words=("connection refused",),
    ),
    Fault(
        "the host name is unknown",
        "Check the host in DATABASE_URL. A paused or deleted project of a provider has no address.",
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
    # After the faults above. On a machine without IPv6, their texts also have this error for the host's IPv6 address.
    Fault(
        "the network has no route to that host",
        "Check the host in DATABASE_URL, this machine's network and the firewalls.",
        words=("network is unreachable", "no route to host"),
    ),
    Fault(
        "there is no server at that socket",
        "Check the folder in DATABASE_URL (?host=/FOLDER), and that the server runs.",
        words=("no such file or directory",),
    ),
    Fault(
        "the server has no connection left",
        "Raise max_connections or the pooler's size, or end programs that use connections. " + BY_ITSELF,
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
    Fault(
        "the connection broke",
        "Check that the server runs and that DATABASE_URL is right, then try again.",
        words=("",),
        shows_message=True,
    ),
)

HIDDEN_CONTACTS = "CP001"
"""The SQLSTATE of `cliniko.require_visible_contacts()`. The message contains the remedy."""

FAILED_CONTACTS_FILTER = "CP002"
"""The SQLSTATE of `cliniko.refuse_contacts_filter()`. The message contains the remedy."""

READ_ONLY = Fault(
    "the database is read-only at present",
    "The usual causes are a full disk, a failover and a provider's limit. If none of them applies, run"
    " `alter database NAME reset default_transaction_read_only`. " + BY_ITSELF,
    ("25006",),
)

STATEMENTS = (
    Fault("another transaction changed the same rows", BY_ITSELF, ("40001",)),
    Fault("two transactions waited for each other", BY_ITSELF, ("40P01",)),
    Fault(
        "another transaction held a lock for too long",
        "Look in pg_stat_activity for a transaction that is open for long. " + BY_ITSELF,
        ("55P03",),
    ),
    Fault("a statement took too long, or was cancelled", BY_ITSELF, ("57014",)),
    Fault("a session was idle for too long, and the server ended it", BY_ITSELF, ("57P05", "25P03", "25P04")),
    READ_ONLY,
    Fault("the server's disk is full", "Free space on the disk. " + BY_ITSELF, ("53100",)),
    Fault("the server is out of memory", BY_ITSELF, ("53200",)),
    Fault("the server has reached a limit", "The server's log says which limit. " + BY_ITSELF, ("53", "54001")),
    Fault("the server could not read or write a file", "The server's log says which file. " + BY_ITSELF, ("58030",)),
    Fault("the transaction was rolled back", BY_ITSELF, ("40",)),
    Fault("the connection broke", BY_ITSELF, ("08", "57P")),
    Fault(
        "a privilege is missing",
        "Run `grant {privilege} on {object} to {role}` as the object's owner. If the error is in a function of the"
        " application, this function can be `security definer` instead.",
        ("42501",),
        signature=r"^(?!exec_stmt_raise:)\w*:permission denied for ",
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "the table's policies do not allow this row to be written",
        "Add a policy to the table that allows the writes of {role} (`create policy ... to {role}`).",
        ("42501",),
        signature="^ExecWithCheckOptions:",
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "row-level security would hide rows from the pipeline, so that they would seem deleted",
        "Exempt {role}, which reads the table, from row-level security: `alter role {role} bypassrls`, or `alter table"
        " ... no force row level security` if that role owns the table.",
        ("42501",),
        signature="^check_enable_rls:",
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "a privilege or the ownership of an object is missing",
        "Grant the privilege to {role}, or execute the command as the owner of the object.",
        ("42501",),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "row-level security of public.contacts hides contacts from the pipeline",
        "The message has the statement that makes all contacts visible.",
        (HIDDEN_CONTACTS,),
        kind=DatabaseSetupError,
    ),
    Fault(
        "the condition in CLINIKO_CONTACTS_FILTER fails on a contact",
        "Correct the setting, which `migrate` then stores.",
        (FAILED_CONTACTS_FILTER,),
        kind=DatabaseSetupError,
    ),
    Fault(
        "an object of another owner has a name that the pipeline needs",
        "Rename that object, or point DATABASE_URL at another database.",
        ("42P07", "42P06", "42710", "42723"),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "an object that the pipeline needs is missing",
        "Run `cliniko-pipeline migrate`, which creates the pipeline's objects and lists missing objects of the"
        " application.",
        ("42P01", "42P10", "3F000", "42883", "22023", "42704"),
        kind=DatabaseSetupError,
        shows_message=True,
        otherwise="Create the object, or correct the application's function, trigger or view that refers to it.",
    ),
    Fault(
        "a table's columns differ from what the pipeline expects",
        "docs/database.md lists the columns of the application's tables. If the table is in the schema cliniko, restore"
        " that schema from a backup.",
        ("42703", "42804", "42830"),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "the row of a foreign key does not exist",
        "Add the row that the application's foreign key requires, or drop or loosen {constraint} of {table}.",
        ("23503",),
        kind=DataError,
        shows_message=True,
    ),
    Fault(
        "another row, perhaps an invisible row of another organization, has the same values already",
        "Add organization_id to {constraint} of {table} if it is missing there, or remove the other row.",
        ("23505",),
        kind=DataError,
        shows_message=True,
    ),
    Fault(
        "a column that the pipeline leaves empty is not null",
        "Run `alter table {table} alter column {column} set default ...`, or `... drop not null`.",
        ("23502",),
        kind=DataError,
        shows_message=True,
    ),
    Fault(
        "a row breaks a rule of the table",
        "Drop or loosen {constraint} of {table}.",
        ("23",),
        kind=DataError,
        shows_message=True,
    ),
    Fault(
        "a value does not fit its column",
        "docs/database.md lists the columns and their types.",
        ("22",),
        kind=DataError,
    ),
    Fault(
        "a function or trigger of the application refused the row",
        "Look in {function} for the conditions that it requires.",
        ("P0001",),
        kind=DataError,
    ),
    Fault(
        "an object does not allow the statement",
        "Change the object in the message, or the application's objects that refer to it.",
        ("42", "25", "55", "0A", "21", "2B", "3F"),
        kind=DataError,
        shows_message=True,
    ),
    Fault("the cause is unknown", "Look in the server's log.", ("",), kind=DataError),
)
"""Of the faults that match state and signature, the first with the longest state applies."""

FAULTS = (*CONNECTING, *STATEMENTS)
