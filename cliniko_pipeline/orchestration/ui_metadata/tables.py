"""The columns and counts of tables in the Dagster UI, without data of patients or contacts."""

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.reads.check_queries import mapping_counts


def column_schema(*columns: tuple[str, str, str]) -> dg.TableSchema:
    """Return the schema of (name, type, description) triples."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name, type_, description=description) for name, type_, description in columns]
    )


def numbers(connection: Connection, schema: str, table: str, *, force: bool = True) -> dict[str, int]:
    """Return the counts that the UI plots over time, apart from the number of rows."""
    match schema, table:
        case "cliniko", "contact_mapping":
            counts, _ = mapping_counts(connection, force=force)
            return {"matched": counts.matched, "ambiguous": counts.ambiguous, "unmatched": counts.unmatched}
        case _:
            return {}


def problems(connection: Connection, schema: str, table: str) -> dict[str, dg.TableMetadataValue]:
    """Return a metadata entry with the table's problems and their counts, if there are any."""
    query = _PROBLEMS.get((schema, table))
    if query is None:
        return {}
    rows = connection.execute(sa.text(query)).mappings()
    found = [dg.TableRecord(dict(row)) for row in rows]
    return {"problems": dg.MetadataValue.table(found)} if found else {}


# These texts are stored in Dagster's events. Row-level security does not protect events, and they stay when an
# organization is removed. So a reason is cut before its bracket, which contains ids.
_REJECTED = (
    "select resource, split_part(reason, ' (', 1) as reason, count(*) as records"
    " from cliniko.rejected_records where {condition} group by 1, 2 order by 3 desc, 1, 2 limit 100"
)
_NOT_PATIENTS = "resource <> 'patients'"
_PROBLEMS = {
    ("cliniko", "patients"): _REJECTED.format(condition="resource = 'patients'"),
    ("cliniko", "appointments"): (
        f"({_REJECTED.format(condition=_NOT_PATIENTS)})"  # noqa: S608 -- two constants
        " union all select 'practitioners', 'no name in Cliniko', count(*) from cliniko.practitioners"
        " where name is null having count(*) > 0"
    ),
    ("cliniko", "contact_mapping"): (
        "select status, method as pass, count(*) as patients from cliniko.contact_mapping"
        " where status <> 'matched' group by status, method order by status, method"
    ),
}
