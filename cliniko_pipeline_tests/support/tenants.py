"""Two organizations with a row in every tenant table."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import Database

MINE, THEIRS = "org_mine", "org_theirs"

# The columns of each row, except organization_id. {n} is the number of the organization.
SAMPLES: dict[str, dict[str, str]] = {
    '"cliniko"."patients"': {
        "id": "'{n}'", "first_name": "'Pat{n}'", "created_at": "now()", "updated_at": "now()",
    },
    '"cliniko"."appointments"': {
        "kind": "'individual'", "id": "'{n}'", "patient_id": "'{n}'", "starts_at": "now()", "did_not_arrive": "false",
        "created_at": "now()", "updated_at": "now()",
    },
    '"cliniko"."attendees"': {"id": "'{n}'", "created_at": "now()", "updated_at": "now()"},
    '"cliniko"."appointment_types"': {"id": "'{n}'", "created_at": "now()", "updated_at": "now()"},
    '"cliniko"."practitioners"': {"id": "'{n}'", "created_at": "now()", "updated_at": "now()"},
    '"cliniko"."contact_mapping"': {"patient_id": "'{n}'", "status": "'unmatched'"},
    '"public"."active_patients"': {
        "contact_id": "'00000000-0000-0000-0000-00000000000{n}'", "recent_appointment_count": "1",
        "upcoming_appointment_count": "1", "total_appointment_count": "2",
    },
    "cliniko.crawls": {"resource": "'resource{n}'", "started_at": "now()"},
    "cliniko.crawled_ids": {"resource": "'resource{n}'", "id": "'{n}'"},
    "cliniko.rejected_records": {"resource": "'resource{n}'", "position": "{n}", "reason": "'unreadable'"},
    "cliniko.sync_runs": {"run_id": "'run{n}'", "planned": "array['a']", "status": "'running'"},
    "cliniko.daily_active_patients": {
        "day": "'2026-01-0{n}'", "active_patients": "{n}", "started_at": "now()", "finished_at": "now()",
    },
    # This table comes last, because writes to the other tables add rows to it.
    "cliniko.table_states": {"name": "'table{n}'"},
}  # fmt: skip

NUMBERS = {MINE: 1, THEIRS: 2}


def insertion(table: str, organization: str, *, row_of: str | None = None) -> str:
    """Return a statement that inserts the sample row of `row_of` for `organization`."""
    sample = SAMPLES[table]
    number = NUMBERS[row_of or organization]
    values = ", ".join(value.format(n=number) for value in sample.values())
    return f"insert into {table} (organization_id, {', '.join(sample)}) values ('{organization}', {values})"


def sow(database: Database) -> None:
    """Store a row in every tenant table and a contact, for both organizations."""
    for organization in NUMBERS:
        with database.organization(organization) as connection:
            connection.exec_driver_sql(
                ";".join(f"delete from {table}; {insertion(table, organization)}" for table in SAMPLES)
            )
    with database.operator() as connection:
        connection.exec_driver_sql(
            "delete from public.contacts; insert into public.contacts (organization_id, name) values "
            + ", ".join(f"('{organization}', '{organization}')" for organization in NUMBERS)
        )


def row_versions(connection: Connection, table: str) -> list[Any]:
    """Return the visible rows with the place and transaction of their row versions."""
    return list(
        connection.execute(sa.text(f"select ctid::text, xmin::text, t::text from {table} as t order by 1")).all()
    )
