"""Dagster's storage in PostgreSQL, over connections that are used again.

Dagster's own opens one for every statement: three hundred for a sync, which took three of its seven CPU seconds, the
server's included (docs/benchmarks.md). `dagster.yaml` names the class.
"""

from typing import TYPE_CHECKING, Self

from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config

if TYPE_CHECKING:
    from dagster._core.storage.config import PostgresStorageConfig
    from dagster._serdes import ConfigurableClassData
    from dagster_postgres.auth import PgTokenProvider

CONNECTIONS_KEPT = 2
"""By each process. As many more as are asked for at once are opened, and closed again."""


class PooledPostgresStorage(DagsterPostgresStorage):
    """Runs, events and schedules share one pool, which ends with the instance."""

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
            # The server may have been started anew since a connection was used last.
            pool_pre_ping=True,
        )
        self._run_storage = _RunStorage(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] (each makes its own)

    @classmethod
    def from_config_value(
        cls, inst_data: "ConfigurableClassData | None", config_value: "PostgresStorageConfig"
    ) -> Self:
        """As Dagster's own, which makes no subclass."""
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            token_provider=get_token_provider_from_config(config_value),
        )


class _RunStorage(PostgresRunStorage):
    """Of the three, the one with which an instance ends whatever else is to be ended."""

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()
