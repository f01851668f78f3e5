"""What the Dagster UI shows of a table: its columns, its size and a few rows without anything that names a patient."""

from typing import Any

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.claims import mapping_counts
from cliniko_pipeline.postgres.merge import quote
from cliniko_pipeline.postgres.tables import WRITTEN

PREVIEW_ROWS = 5
PROBLEMS_SHOWN = 100

# Metadata are kept in Dagster's own storage and shown to whoever may see the UI: no names, no addresses, and no
# patient's appointments. A table that is not listed here is not previewed.
PREVIEW_COLUMNS: dict[tuple[str, str], tuple[str, ...]] = {
    ("cliniko", "patients"): ("id", "archived_at", "deleted_at", "merged_into_id", "created_at", "updated_at"),
    ("cliniko", "appointments"): ("kind", "id", "created_at", "updated_at", "cancelled_at"),
    ("cliniko", "contact_mapping"): ("patient_id", "contact_id", "status", "method", "candidate_count"),
    ("public", "active_patients"): (
        "contact_id",
        "recent_appointment_count",
        "upcoming_appointment_count",
        "total_appointment_count",
        "last_appointment_date",
    ),
}


def column_schema(*columns: tuple[str, str, str]) -> dg.TableSchema:
    """A schema from (name, type, description) triples, for an asset's definition."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name, type_, description=description) for name, type_, description in columns]
    )


def preview(connection: Connection, schema: str, table: str) -> dg.TableMetadataValue | dg.TextMetadataValue:
    """A few of the organization's rows, as text."""
    columns = PREVIEW_COLUMNS.get((schema, table))
    if columns is None:
        return dg.MetadataValue.text("Not previewed: the table may hold what names a patient.")
    names = ", ".join(map(quote, columns))
    # In order: an index finds the first, past all rows of other organizations.
    (key,) = (each.key for each in WRITTEN if (each.schema, each.name) == (schema, table))
    order = ", ".join(map(quote, key))
    rows = connection.execute(
        sa.text(f"select {names} from {quote(schema)}.{quote(table)} order by {order} limit {PREVIEW_ROWS}")  # noqa: S608
    )
    return dg.MetadataValue.table(
        [dg.TableRecord({column: _shown(row[i]) for i, column in enumerate(columns)}) for row in rows],
        schema=dg.TableSchema([dg.TableColumn(column) for column in columns]),
    )


def numbers(connection: Connection, schema: str, table: str, *, anew: bool = True) -> dict[str, int]:
    """What the UI plots of a table over time, besides its size."""
    match schema, table:
        case "cliniko", "contact_mapping":
            counts, _ = mapping_counts(connection, anew=anew)
            return {"matched": counts.matched, "ambiguous": counts.ambiguous, "unmatched": counts.unmatched}
        case _:
            return {}


def problems(connection: Connection, schema: str, table: str) -> dict[str, dg.TableMetadataValue]:
    """A table of what the operator should look at, by ids and reasons; nothing where all is well."""
    query = _PROBLEMS.get((schema, table))
    if query is None:
        return {}
    rows = connection.execute(sa.text(f"{query} limit {PROBLEMS_SHOWN}")).mappings()
    found = [dg.TableRecord({name: _shown(value) for name, value in row.items()}) for row in rows]
    return {"problems": dg.MetadataValue.table(found)} if found else {}


_REJECTED = (
    "select resource, coalesce(id, 'unreadable') as id, reason, rejected_at as since"
    " from cliniko.rejected_records where {condition} order by rejected_at desc, resource, position"
)
_PROBLEMS = {
    ("cliniko", "patients"): _REJECTED.format(condition="resource = 'patients'"),
    ("cliniko", "appointments"): _REJECTED.format(condition="resource <> 'patients'"),
    ("cliniko", "contact_mapping"): (
        "select patient_id, status, method as pass, candidate_count as candidates from cliniko.contact_mapping"
        " where status <> 'matched' order by status, length(patient_id), patient_id"
    ),
}


def _shown(value: Any) -> str | int | float | bool | None:
    # Dagster takes only JSON's own kinds of value.
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
