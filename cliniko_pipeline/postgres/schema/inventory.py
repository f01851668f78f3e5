"""The pipeline's objects in the database, and the check that none of them is missing.

`isolation` checks policies and their grants. `rehearsal` checks that all objects work together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, CONTACT_MAPPING, TENANT_TABLES, WATCHED, WRITTEN

OPERATOR_TABLES = (
    "cliniko.scheduling",
    "cliniko.check_results",
    "cliniko.alerts",
    "cliniko.notices",
    "cliniko.request_budgets",
    "cliniko.api_tokens",
    "cliniko.api_refusals",
    "cliniko.webhook_secrets",
    "cliniko.webhook_events",
    "cliniko.webhook_targets",
    "cliniko.webhook_deliveries",
    "cliniko.run_heartbeats",
    "cliniko.database_identity",
    "cliniko.contacts_filter",
)
"""The tables of the schema cliniko without row-level security."""


@dataclass(frozen=True)
class Key:
    """Unique columns of a table. `is_deferred` keys are checked at the end of a transaction."""

    table: str
    columns: tuple[str, ...]
    is_deferred: bool = False


KEYS = (
    *(Key(table.qualified, ("organization_id", *table.key)) for table in WRITTEN),
    Key(CONTACT_MAPPING.qualified, ("organization_id", "contact_id"), is_deferred=True),
    Key("cliniko.crawls", ("organization_id", "resource")),
    Key("cliniko.crawled_ids", ("organization_id", "resource", "id")),
    Key("cliniko.sync_runs", ("organization_id", "run_id")),
    Key("cliniko.daily_active_patients", ("organization_id", "day")),
    Key("cliniko.table_states", ("organization_id", "name")),
    Key("cliniko.scheduling", ("organization_id",)),
    Key("cliniko.check_results", ("organization_id", "asset", "name")),
    Key("cliniko.alerts", ("organization_id", "name")),
    Key("cliniko.request_budgets", ("key_digest",)),
    Key("cliniko.run_heartbeats", ("run_id",)),
    Key("cliniko.webhook_events", ("organization_id", "message_id")),
    Key("cliniko.webhook_targets", ("organization_id",)),
    Key("cliniko.webhook_deliveries", ("organization_id", "run_id")),
)
"""The unique columns that `on conflict` needs, and the key that gives a contact to one patient only."""

_BODY = "$function$"


def missing_objects(connection: Connection, functions: Sequence[str], role: str) -> list[str]:
    """Return descriptions of the missing objects that a migration creates again.

    These are public.active_patients, unique indexes, functions, triggers, and privileges of the role. A function with a
    different text counts as missing.
    """
    bodies = {PurePosixPath(file).name: _body(file) for file in functions}
    rows = connection.execute(
        sa.text(sql("schema/missing_objects")),
        {
            "active_patients": ACTIVE_PATIENTS.qualified,
            "functions": list(bodies),
            "bodies": list(bodies.values()),
            "watched": [table.qualified for table in WATCHED],
            "tenants": list(TENANT_TABLES),
            "role": role,
        },
    )
    keys = [
        "the unique index of {} ({})".format(key.table.replace('"', ""), ",".join(sorted(key.columns)))
        for key in missing_keys(connection, KEYS)
    ]
    return [*rows.scalars(), *keys]


def missing_keys(connection: Connection, keys: Sequence[Key]) -> list[Key]:
    """Return the keys without a unique index. Keys of views and missing tables are not returned."""
    rows = connection.execute(
        sa.text(sql("schema/missing_keys")),
        {
            "tables": [key.table for key in keys],
            "keys": [",".join(sorted(key.columns)) for key in keys],
            "deferred": [key.is_deferred for key in keys],
        },
    )
    return [keys[position - 1] for position in rows.scalars()]


def ensure_keys(connection: Connection) -> None:
    """Create the missing unique indexes."""
    for key in missing_keys(connection, KEYS):
        columns = ", ".join(f'"{column}"' for column in key.columns)
        if key.is_deferred:
            connection.exec_driver_sql(f"alter table {key.table} add unique ({columns}) deferrable initially deferred")
        else:
            connection.exec_driver_sql(f"create unique index on {key.table} ({columns})")


def require_own_tables(connection: Connection) -> None:
    """Raise DatabaseSetupError if tables of the schema cliniko are missing.

    The migration does not create them again, because empty tables would contradict checkpoints in other tables.
    """
    tables = [*(table for table in TENANT_TABLES if table != ACTIVE_PATIENTS.qualified), *OPERATOR_TABLES]
    rows = connection.execute(
        sa.text("select named from unnest(cast(:names as text[])) as named where to_regclass(named) is null"),
        {"names": [table.replace('"', "") for table in tables]},
    )
    missing = list(rows.scalars())
    if missing:
        raise DatabaseSetupError(
            f"The tables {', '.join(missing)} are missing: restore the schema cliniko from a backup. Without a backup,"
            " run `drop schema cliniko cascade` and `cliniko-pipeline migrate`. This deletes schedules, tokens and"
            " webhooks, and the next syncs are full syncs."
        )


def require_own_schema(connection: Connection) -> None:
    """Raise DatabaseSetupError if a schema that the pipeline needs belongs to another program."""
    foreign = connection.execute(sa.text(sql("schema/foreign_schemas"))).all()
    if foreign:
        schema, tables = foreign[0].schema, ", ".join(foreign[0].tables[:5])
        raise DatabaseSetupError(
            f"The pipeline needs the schema name {schema}, but this schema has tables of another program ({tables})."
            f" Rename the schema (`alter schema {schema} rename to ...`), or point DATABASE_URL at another database."
        )


def _body(file: str) -> str | None:
    """Return the body as in pg_proc.prosrc, or None for an SQL-standard body, which is elsewhere."""
    parts = sql(file).split(_BODY)
    return parts[1] if len(parts) > 1 else None
