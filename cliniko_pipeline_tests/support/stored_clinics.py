"""A clinic with stored records, contact mapping and active patients, for tests of `explain`."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

import sqlalchemy as sa

from cliniko_pipeline.cliniko import records as cliniko
from cliniko_pipeline.cliniko.decoding.pages import decode_page
from cliniko_pipeline.postgres import tables
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.reads.explanations.explanation import Explanation, explain
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline.postgres.writing.merge import replace_by_query, upsert
from cliniko_pipeline_tests.support.hostile_accounts import ORGANIZATION, WireRecord, individual_appointment

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
RECENTLY = "2026-06-01T09:00:00Z"
SOON = "2026-06-20T09:00:00Z"
ENDED = "2026-05-01T00:00:00Z"
RULES = Rules(timedelta(days=60), count_no_shows=True)
WITHOUT_NO_SHOWS = Rules(timedelta(days=60), count_no_shows=False)

EMAIL = "ann@clinic.example"

SOURCES = (
    (cliniko.PATIENTS, tables.PATIENTS, None),
    (cliniko.APPOINTMENT_TYPES, tables.APPOINTMENT_TYPES, None),
    (cliniko.PRACTITIONERS, tables.PRACTITIONERS, None),
    (cliniko.INDIVIDUAL_APPOINTMENTS, tables.APPOINTMENTS, "individual"),
    (cliniko.GROUP_APPOINTMENTS, tables.APPOINTMENTS, "group"),
    (cliniko.ATTENDEES, tables.ATTENDEES, None),
)


def came(appointment_id: str = "10", patient_id: str = "1", starts_at: str = RECENTLY, **changes: Any) -> WireRecord:
    return individual_appointment(appointment_id, patient_id, starts_at, **changes)


class StoredClinic:
    """An organization whose records are decoded and stored without HTTP and Dagster."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.id = f"clinic-{uuid4().hex}"

    def store(self, **wire: Sequence[WireRecord]) -> None:
        """Upsert the records, and store a complete crawl of every resource."""
        with self.database.organization(self.id) as connection:
            for resource, table, kind in SOURCES:
                entries = list(wire.get(resource.name, ()))
                page = decode_page(resource, json.dumps({resource.name: entries, "total_entries": 0}).encode())
                upsert(connection, table, [_row(table, record, kind) for record in page.records])
                connection.execute(
                    sa.text(
                        "insert into cliniko.crawls (organization_id, resource, started_at, completed_at)"
                        " values (:id, :resource, now(), now()) on conflict do nothing"
                    ),
                    {"id": self.id, "resource": resource.name},
                )

    def add_contacts(self, *rows: Mapping[str, Any]) -> None:
        """Insert contacts made with `hostile_accounts.contact`. `contact_id` returns their new ids."""
        with self.database.operator() as connection:
            for row in rows:
                organization = self.id if row["organization_id"] == ORGANIZATION else f"{self.id}-neighbour"
                connection.execute(
                    sa.text(
                        "insert into public.contacts"
                        " (id, organization_id, cliniko_patient_id, name, first_name, last_name, email)"
                        " values (:id, :organization_id, :cliniko_patient_id, :name, :first_name, :last_name, :email)"
                    ),
                    {**row, "id": self.contact_id(row["id"].int), "organization_id": organization},
                )

    def contact_id(self, number: int) -> UUID:
        return uuid5(UUID(self.id.removeprefix("clinic-")), str(number))

    def compute(self, as_of: datetime = AS_OF, rules: Rules = RULES) -> None:
        """Compute the mapping and the active patients with the pipeline's queries."""
        with self.database.organization(self.id) as connection:
            replace_by_query(connection, tables.CONTACT_MAPPING, sql("transforms/contact_mapping"), {})
        with self.database.organization(self.id) as connection:
            replace_by_query(
                connection, tables.ACTIVE_PATIENTS, sql("transforms/active_patients"), rules.parameters(as_of)
            )

    def add_run(self, status: str, started_at: datetime, error: str | None = None) -> None:
        self.run(
            "insert into cliniko.sync_runs (organization_id, run_id, planned, status, started_at, error)"
            " values (:id, :run_id, :planned, :status, :started_at, :error)",
            run_id=uuid4().hex,
            planned=["cliniko/patients", "contact_mapping", "active_patients"],
            status=status,
            started_at=started_at,
            error=error,
        )

    def add_rejection(self, resource: str, record_id: str, reason: str) -> None:
        self.run(
            "insert into cliniko.rejected_records (organization_id, resource, position, id, reason)"
            " values (:id, :resource, 1, :record_id, :reason)",
            resource=resource,
            record_id=record_id,
            reason=reason,
        )

    def explain(self, patient_id: str, as_of: datetime | None = None, rules: Rules = RULES) -> Explanation:
        with self.database.organization(self.id) as connection:
            found = explain(connection, patient_id, rules, as_of)
        assert found is not None
        return found

    def delete_contact(self, number: int) -> None:
        with self.database.operator() as connection:
            connection.execute(sa.text("delete from public.contacts where id = :id"), {"id": self.contact_id(number)})

    def run(self, statement: str, **values: object) -> None:
        with self.database.organization(self.id) as connection:
            connection.execute(sa.text(statement), {"id": self.id, **values})


def _row(table: tables.Table, record: cliniko.Record, kind: str | None) -> tuple[object, ...]:
    absent = {"kind": kind, "did_not_arrive": False}
    return tuple(getattr(record, column, absent.get(column)) for column in table.written)
