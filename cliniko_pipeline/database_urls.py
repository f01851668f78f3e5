"""The parameters of a database URL: those that libpq takes, and remedies for those of other programs."""

from urllib.parse import parse_qsl

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


def wrong_parameter(query: str) -> str | None:
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
