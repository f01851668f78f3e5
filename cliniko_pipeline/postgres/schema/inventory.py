"""What of the pipeline is there, by the catalog: not what version it is said to be, but which objects are missing.

Policies and the grants that go with them are looked at by `schema`; whether all of it works, by `rehearsal`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
"""The tables of the schema cliniko that hold no organization's data."""


@dataclass(frozen=True)
class Key:
    """Columns that are unique in a table; where `is_deferred`, at the end of a transaction."""

    table: str
    columns: tuple[str, ...]
    is_deferred: bool = False


KEYS = (
    *(Key(table.qualified, ("organization_id", *table.key)) for table in WRITTEN),
    Key(CONTACT_MAPPING.qualified, ("organization_id", "contact_id"), is_deferred=True),
    Key("cliniko.crawls", ("organization_id", "resource")),
    Key("cliniko.crawled_ids", ("organization_id", "resource", "id")),
    Key("cliniko.sync_runs", ("organization_id", "run_id")),
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
"""The columns by which rows are found again (`on conflict`), and by which no contact is two patients'."""

_BODY = "$function$"


def missing_objects(connection: Connection, functions: Sequence[str], role: str) -> list[str]:
    """Return what is missing that a migration makes again, in words: public.active_patients, unique
    indexes, functions (also those with another text), triggers, and privileges of the role.
    """
    bodies = {name: _body(name) for name in functions}
    rows = connection.execute(
        sa.text(sql("schema/missing_objects")),
        {
            "active_patients": ACTIVE_PATIENTS.qualified,
            "functions": list(bodies),
            "bodies": list(bodies.values()),
            "watched": [table.qualified for table in WATCHED],
            "keyed": [key.table for key in KEYS],
            "keys": [",".join(sorted(key.columns)) for key in KEYS],
            "deferred": [key.is_deferred for key in KEYS],
            "tenants": list(TENANT_TABLES),
            "role": role,
        },
    )
    return list(rows.scalars())


def ensure_keys(connection: Connection) -> None:
    """Make the unique indexes that are missing."""
    for key in KEYS:
        columns = ", ".join(f'"{column}"' for column in key.columns)
        is_there = connection.execute(
            sa.text(sql("schema/has_unique_key")),
            {"keyed": key.table, "key": ",".join(sorted(key.columns)), "is_deferred": key.is_deferred},
        ).scalar_one()
        if not is_there and key.is_deferred:
            connection.exec_driver_sql(f"alter table {key.table} add unique ({columns}) deferrable initially deferred")
        elif not is_there:
            connection.exec_driver_sql(f"create unique index on {key.table} ({columns})")


def require_own_tables(connection: Connection) -> None:
    """Raise DatabaseSetupError where tables of the schema cliniko are missing: made again they would be empty, and what
    was read from Cliniko is known by other tables.
    """
    tables = [*(table for table in TENANT_TABLES if table != ACTIVE_PATIENTS.qualified), *OPERATOR_TABLES]
    rows = connection.execute(
        sa.text("select named from unnest(cast(:names as text[])) as named where to_regclass(named) is null"),
        {"names": [table.replace('"', "") for table in tables]},
    )
    missing = list(rows.scalars())
    if missing:
        raise DatabaseSetupError(
            f"The pipeline has lost {', '.join(missing)}: restore the schema cliniko from"
            " a backup. Without one, `drop schema cliniko cascade` and `cliniko-pipeline migrate` make it"
            " new (schedules, tokens and webhooks are lost), and the next syncs read everything."
        )


def require_own_schema(connection: Connection) -> None:
    """Raise DatabaseSetupError where a schema of the pipeline's name is somebody else's: nothing was made yet."""
    foreign = connection.execute(sa.text(sql("schema/foreign_schemas"))).all()
    if foreign:
        schema, tables = foreign[0].schema, ", ".join(foreign[0].tables[:5])
        raise DatabaseSetupError(
            f"The schema {schema} is not the pipeline's: it has {tables} of somebody else's, and the pipeline needs the"
            f" name. Rename it (`alter schema {schema} rename to ...`), or point DATABASE_URL at another database."
        )


def _body(function: str) -> str | None:
    """Its text, of which PostgreSQL keeps a copy; None of those in SQL, which it keeps otherwise."""
    parts = sql(f"functions/{function}").split(_BODY)
    return parts[1] if len(parts) > 1 else None
