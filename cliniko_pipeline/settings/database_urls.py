"""The rules for DATABASE_URL, with remedies for the parameters of other programs."""

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
"""libpq's parameters (https://www.postgresql.org/docs/17/libpq-connect.html)."""

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_INSTEAD = {
    "pgbouncer": "belongs to Prisma: remove it, and use the pooler's session mode",
    "schema": "belongs to Prisma: remove it, because the pipeline specifies each schema itself",
    "currentschema": "belongs to JDBC: remove it, because the pipeline specifies each schema itself",
    "search_path": "is not a connection parameter: remove it, because the pipeline specifies each schema itself",
    "ssl": "belongs to another driver: write sslmode=require instead, or sslmode=disable for ssl=false",
    "sslaccept": "belongs to Prisma: write sslmode=require instead, or sslmode=verify-full for strict",
    "uselibpqcompat": "belongs to node-postgres: remove it",
    "connection_limit": "belongs to Prisma: remove it",
    "pool_timeout": "belongs to Prisma: remove it",
    "statement_cache_size": "belongs to another driver: remove it",
    "prepared_statement_cache_size": "belongs to asyncpg: remove it",
    "socket_timeout": "belongs to Prisma: write connect_timeout=SECONDS or tcp_user_timeout=MILLISECONDS instead",
}


_HOST_LIST = "write a port for each host: postgresql://USER:PASSWORD@/DATABASE?host=ONE,TWO&port=5432,5432"


def database_url(value: str) -> str:
    """Return the URL with its scheme in lower case. The driver is chosen where the URL is used.

    Raises ValueError. The error's text continues a sentence that begins with the variable's name.
    """
    scheme, separator, rest = value.strip().partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ValueError(f"is not a database URL; write it as {URL_FORM}.")
    if scheme not in _SCHEMES:
        raise ValueError(_foreign_database(scheme))
    if "," in rest.partition("/")[0].rpartition("@")[2]:
        raise ValueError(f"lists several hosts before the slash; {_HOST_LIST}.")
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
    """Return the database's name, perhaps blank, or None if `rest` is not part of a valid URL."""
    try:
        parts = urlsplit(f"postgresql://{rest}")
        readable = parts.port is None or parts.port > 0
    except ValueError:
        return None
    _, at, host = parts.netloc.rpartition("@")
    database = parts.path.removeprefix("/")
    # Each of these is a sign of a password with an unescaped mark.
    misplaced = rest.count("@") > len(at) or "#" in rest or "/" in database
    broken_host = host.endswith(":") or ("[" in host and not is_host(host))
    return database if readable and not misplaced and not broken_host else None


def _parameter_problem(query: str) -> str | None:
    """Describe the first parameter that libpq does not accept, or return None.

    The description never contains a value.
    """
    parameters = parse_qsl(query, keep_blank_values=True)
    hosts, ports = (
        ",".join(value for name, value in parameters if name == part).split(",") for part in ("host", "port")
    )
    if ports != [""] and len(hosts) != len(ports):
        return f"has {len(hosts)} hosts and {len(ports)} ports; {_HOST_LIST}."
    for name, value in parameters:
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
        return "has sslmode=no-verify, which belongs to node-postgres: write sslmode=require, which does not verify."
    return f"has an sslmode that PostgreSQL does not know: write one of {', '.join(_SSL_MODES)}."
