"""Dagster's storage in PostgreSQL, with pooled connections and in a schema of its own.

Do not rename this module or its class, because the `dagster.yaml` of every installation refers to them.

Dagster's own storage opens a connection per statement. In a sync it opened three hundred connections, which took three
of the sync's seven CPU seconds (docs/benchmarks.md).

The URL contains the schema. In a plain URL, such as DATABASE_URL, the schema is `dagster`. A statement on every new
connection sets the search path to the schema. A start-up option would not be enough, because poolers drop it, and
Dagster would then create its tables in `public`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.engine import URL, make_url

from cliniko_pipeline.postgres.server.connections import (
    enter_schema,
    keep_no_read_only_sessions,
    prepare_session,
    require_session_mode,
)
from cliniko_pipeline.postgres.server.driver_errors import ends_pooled_connections

if TYPE_CHECKING:
    from dagster._core.storage.config import PostgresStorageConfig
    from dagster._serdes import ConfigurableClassData
    from dagster_postgres.auth import PgTokenProvider

STORAGE_SCHEMA = "dagster"

CONNECTIONS_KEPT = 2
"""The number of idle connections that a process keeps. More are opened if needed, and closed after use."""

_DIALECT = "postgresql.cliniko_dagster_storage"
_SCHEMA = "storage_schema"


def storage_url(url: URL, schema: str) -> URL:
    """Return the database's URL for `PooledPostgresStorage`. No other storage can open it."""
    return url.set(drivername=_DIALECT.replace(".", "+")).update_query_dict({_SCHEMA: schema})


def _with_schema(url: str) -> str:
    """Return the URL as it is if it contains a schema. Otherwise add the driver and Dagster's schema."""
    parsed = make_url(url)
    if _SCHEMA in parsed.query:
        return url
    return storage_url(parsed, STORAGE_SCHEMA).render_as_string(hide_password=False)


class StorageDialect(PGDialect_psycopg2):
    """A dialect that sets the search path to the URL's schema.

    It uses psycopg2, because dagster-postgres does not understand the errors of psycopg 3.
    """

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        """Return psycopg2's arguments. Leave out the schema, which only this dialect understands."""
        return super().create_connect_args(url.difference_update_query([_SCHEMA]))  # pyright: ignore[reportUnknownVariableType]

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Return whether the error means that the pool must replace its connections."""
        return super().is_disconnect(e, connection, cursor) or ends_pooled_connections(e)

    def on_connect_url(self, url: URL) -> Callable[[Any], None]:
        """Return the function that prepares a new connection. It raises DatabaseSetupError."""
        schema = url.query[_SCHEMA]
        assert isinstance(schema, str)  # noqa: S101 (by `storage_url`)
        prepare = super().on_connect_url(url)

        def connect(connection: Any) -> None:
            parameters = {**connection.info.dsn_parameters, "password": connection.info.password or None}
            parameters.pop("options", None)
            require_session_mode(connection, connection.info.backend_pid, parameters)
            prepare_session(connection)
            enter_schema(connection, schema)
            if prepare:
                prepare(connection)

        return connect


registry.register(_DIALECT, __name__, StorageDialect.__name__)


class PooledPostgresStorage(DagsterPostgresStorage):
    """The storages of runs, events and schedules, which share one connection pool."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: "ConfigurableClassData | None" = None,
        token_provider: "PgTokenProvider | None" = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        engine = create_pg_engine(
            postgres_url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=CONNECTIONS_KEPT,
            max_overflow=-1,
            # The server may have restarted since a connection was last used.
            pool_pre_ping=True,
        )
        keep_no_read_only_sessions(engine)
        self._run_storage = _RunStorage(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] (each would make its own)

    @classmethod
    def from_config_value(
        cls, inst_data: "ConfigurableClassData | None", config_value: "PostgresStorageConfig"
    ) -> Self:
        """Return a storage of this class, whereas Dagster's method returns one of the base class."""
        return cls(
            inst_data=inst_data,
            postgres_url=_with_schema(pg_url_from_config(config_value)),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            token_provider=get_token_provider_from_config(config_value),
        )


class _RunStorage(PostgresRunStorage):
    """The storage of runs. Dagster disposes of this storage last, so it also closes the pool."""

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()
