"""The causes and remedies of errors of PostgreSQL, poolers and libpq, as docs/errors.md lists them.

Names of objects stand in braces; `driver_errors` fills them in from the error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseSetupError, DatabaseUnavailableError, DataError


@dataclass(frozen=True)
class Fault:
    """A kind of error that PostgreSQL, a pooler or libpq reports.

    Attributes:
        cause: what happened; a clause without a full stop.
        remedy: what to do next. `{table}` is replaced by the name of the error's table.
        states: SQLSTATEs or their prefixes.
        words: regular expressions on the lower-case text of libpq or a pooler, which has no SQLSTATE.
        signature: a regular expression on the server's function, a colon and the message. It distinguishes faults of
            one SQLSTATE. The function's name is the same in all languages.
        kind: the error that is raised.
        shows_message: whether the server's primary message is shown. In these classes it names objects, not values.
        otherwise: the remedy after `migrate`; blank: the same.
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
    """The names of objects by kind; for an unknown name, the kind in capitals."""

    def __missing__(self, kind: str) -> str:
        return kind.upper()


def named(text: str, names: Mapping[str, str]) -> str:
    """Return the text with names instead of braces."""
    return text.format_map(_Names(names))


BY_ITSELF = "Syncs are tried again by themselves."

# The first match counts, so specific words come before general ones.
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
        # Not where the encrypted connection, which libpq tries first, was refused too.
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
        # The drivers' own OpenSSL does not know this machine's folders.
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
            # All addresses, in quotes or brackets, are IPv6 addresses.
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
    # Last: without IPv6 a host's IPv6 address is unreachable, whatever the error of its other address.
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
    Fault(
        "the connection broke",
        "Check that the server runs and that DATABASE_URL is right, then try again.",
        words=("",),
        shows_message=True,
    ),
)

HIDDEN_CONTACTS = "CP001"
"""The SQLSTATE of `cliniko.require_visible_contacts()`. Its message says what to do."""

FAILED_CONTACTS_FILTER = "CP002"
"""The SQLSTATE of `cliniko.refuse_contacts_filter()`. Its message says what to do."""

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
        "Run `grant {privilege} on {object} to {role}` as its owner. A function of the application that is named can be"
        " `security definer` instead.",
        ("42501",),
        signature=r"^(?!exec_stmt_raise:)\w*:permission denied for ",
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "a policy of the table does not let the row be written",
        "Let a policy of that table permit what {role} writes (`create policy ... to {role}`).",
        ("42501",),
        signature="^ExecWithCheckOptions:",
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "row-level security would hide rows from the pipeline, and they would be taken for deleted",
        "Let the table's owner exempt {role}, which reads it (bypassrls, or `alter table ... no force row level"
        " security` where that role owns the table).",
        ("42501",),
        signature="^check_enable_rls:",
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "a privilege is missing, or ownership",
        "Grant the privilege to {role}, or carry out the command as the owner of that object.",
        ("42501",),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "row-level security of public.contacts hides contacts from the pipeline",
        "The message names the policy or the attribute of the role that opens them.",
        (HIDDEN_CONTACTS,),
        kind=DatabaseSetupError,
    ),
    Fault(
        "the condition in CLINIKO_CONTACTS_FILTER fails on a contact",
        "Correct the setting, and let `migrate` take it over.",
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
        "Run `cliniko-pipeline migrate`: it creates the pipeline's own objects, and names missing objects of others.",
        ("42P01", "42P10", "3F000", "42883", "22023", "42704"),
        kind=DatabaseSetupError,
        shows_message=True,
        otherwise="Create the named object, or correct the application's function, trigger or view that refers to it.",
    ),
    Fault(
        "a table is not as the pipeline expects it",
        "docs/database.md lists the columns of the application's tables. Where it is a table of the schema cliniko,"
        " restore that schema from a backup.",
        ("42703", "42804", "42830"),
        kind=DatabaseSetupError,
        shows_message=True,
    ),
    Fault(
        "a row that it refers to does not exist",
        "Add the row that the application's foreign key asks for, or drop or loosen {constraint} of {table}.",
        ("23503",),
        kind=DataError,
        shows_message=True,
    ),
    Fault(
        "another row has the same values already, perhaps one of another organization, which this one cannot see",
        "Extend {constraint} of {table} by organization_id where it lacks that, or remove the other row.",
        ("23505",),
        kind=DataError,
        shows_message=True,
    ),
    Fault(
        "a column that the pipeline leaves empty must not be",
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
        "a function or trigger of the application refused it",
        "Look at what {function} demands of the row.",
        ("P0001",),
        kind=DataError,
    ),
    Fault(
        "the object that is named does not allow it",
        "Change that object of the application's, or what refers to it.",
        ("42", "25", "55", "0A", "21", "2B", "3F"),
        kind=DataError,
        shows_message=True,
    ),
    Fault("it is not known why", "The server's log says more.", ("",), kind=DataError),
)
"""The longest matching state counts, and then the first matching signature."""

FAULTS = (*CONNECTING, *STATEMENTS)
