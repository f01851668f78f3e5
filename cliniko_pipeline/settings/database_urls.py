"""DATABASE_URL: its form, the parameters that libpq takes, and remedies for those of other programs."""

import re
from urllib.parse import parse_qsl, urlsplit

from cliniko_pipeline.settings.validators import is_host

URL_FORM = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"

_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")

_KNOWN = frozenset(
    """
    application_name channel_binding client_encoding connect_timeout fallback_application_name gssdelegation
    gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname
    load_balance_hosts options passfile password port require_auth requirepeer service
    ssl_max_protocol_version ssl_min_protocol_version sslcert sslcertmode sslcompression sslcrl sslcrldir
    sslkey sslmode sslnegotiation sslpassword sslrootcert sslsni target_session_attrs tcp_user_timeout user
    """.split()  # noqa: SIM905
)
"""The parameters that the libpq of both drivers takes (https://www.postgresql.org/docs/17/libpq-connect.html)."""

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_INSTEAD = {
    "pgbouncer": "is Prisma's: remove it, and use the pooler's session mode",
    "schema": "is Prisma's: remove it, for the pipeline names each schema itself",
    "currentschema": "is JDBC's: remove it, for the pipeline names each schema itself",
    "search_path": "is no parameter of its own: remove it, for the pipeline names each schema itself",
    "ssl": "is another driver's: write sslmode=require instead, or sslmode=disable for ssl=false",
    "sslaccept": "is Prisma's: write sslmode=require instead, or sslmode=verify-full for strict",
    "uselibpqcompat": "is node-postgres's: remove it",
    "connection_limit": "is Prisma's: remove it",
    "pool_timeout": "is Prisma's: remove it",
    "statement_cache_size": "is another driver's: remove it",
    "prepared_statement_cache_size": "is asyncpg's: remove it",
    "socket_timeout": "is Prisma's: write connect_timeout=SECONDS or tcp_user_timeout=MILLISECONDS instead",
}


def database_url(value: str) -> str:
    """Return the URL as given, but with the scheme in lower case: each user of it chooses a driver.

    Raises ValueError with the end of a sentence that begins with the variable's name.
    """
    scheme, separator, rest = value.strip().partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ValueError(f"is not a database URL; write it as {URL_FORM}.")
    if scheme not in _SCHEMES:
        raise ValueError(_foreign_database(scheme))
    _require_database_name(rest)
    if problem := _parameter_problem(urlsplit(f"postgresql://{rest}").query):
        raise ValueError(problem)
    return f"{scheme}://{rest}"


def _foreign_database(scheme: str) -> str:
    system, _, driver = scheme.partition("+")
    if system in {"postgres", "postgresql"}:
        return f"asks for the driver {driver}, which is not used here; write it as {URL_FORM}."
    return (
        f"points at another database system ({system}); the pipeline needs PostgreSQL 14 or later:"
        f" {URL_FORM}, or leave it unset for the embedded one."
    )


def _require_database_name(rest: str) -> None:
    if (database := _database_name(rest)) is None:
        raise ValueError(
            "cannot be read; percent-encode marks such as @ : / ? # in the user and the password,"
            f" and write it as {URL_FORM}."
        )
    if not rest.isprintable():
        raise ValueError("holds a line break or another control character; paste it again as one line.")
    if not database:
        raise ValueError(f"names no database; write it as {URL_FORM}.")


def _database_name(rest: str) -> str | None:
    """Return the database's name, perhaps blank; None where `rest` does not come apart as it should."""
    try:
        parts = urlsplit(f"postgresql://{rest}")
        readable = parts.port is None or parts.port > 0
    except ValueError:
        return None
    _, at, host = parts.netloc.rpartition("@")
    database = parts.path.removeprefix("/")
    # Each of these is what a password with an unescaped mark looks like from here.
    misplaced = rest.count("@") > len(at) or "#" in rest or "/" in database
    broken_host = host.endswith(":") or ("[" in host and not is_host(host))
    return database if readable and not misplaced and not broken_host else None


def _parameter_problem(query: str) -> str | None:
    """Describe the first parameter that libpq does not take, with its remedy; return None if there is none.

    The description never holds a value.
    """
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "sslmode" and value not in _SSL_MODES:
            return _ssl_mode(value)
        if name in _KNOWN:
            continue
        if instead := _INSTEAD.get(name.lower()):
            return f"has the parameter {name.lower()}, which {instead}."
        shown = name if name.isidentifier() and name.isascii() and "=" in query else "that cannot be read"
        return f"has a parameter that PostgreSQL's connections do not know ({shown}): remove it."
    return None


def _ssl_mode(value: str) -> str:
    if value == "no-verify":
        return "has sslmode=no-verify, which is node-postgres's: write sslmode=require, which does not verify either."
    return f"has an sslmode that PostgreSQL does not know: write one of {', '.join(_SSL_MODES)}."
