"""A clinic whose source tables the test writes, and whose derived tables are computed as in a sync."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline.postgres.tables import (
    ACTIVE_PATIENTS,
    APPOINTMENTS,
    ATTENDEES,
    CONTACT_MAPPING,
    PATIENTS,
    WATCHED,
    Table,
)
from cliniko_pipeline.postgres.writing import computed_tables, derivations
from cliniko_pipeline.postgres.writing.derivations import Derivation
from cliniko_pipeline.postgres.writing.merge import upsert

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class DerivedClinic:
    """An organization, with the settings of its next sync."""

    database: Database
    id: str = field(default_factory=lambda: f"clinic-{uuid4()}")
    as_of: datetime = NOW
    window: timedelta = timedelta(days=60)
    count_no_shows: bool = True

    @property
    def rules(self) -> Rules:
        return Rules(self.window, self.count_no_shows)

    @property
    def parameters(self) -> dict[str, object]:
        return self.rules.parameters(self.as_of)

    def mapping(self) -> Derivation:
        return computed_tables.contact_mapping()

    def derive(self, *, full: bool = False) -> bool:
        """Write the mapping as a sync does. Return whether it was computed."""
        with self.database.organization(self.id) as connection:
            return derivations.write(connection, self.mapping(), force=full) is not None

    def sync(self, *, full: bool = False) -> bool:
        """Derive both tables and check them. Return whether the mapping was computed."""
        is_computed = self.derive(full=full)
        with self.database.organization(self.id) as connection:
            derivations.write(connection, computed_tables.active_patients(self.as_of, self.rules), force=full)
        self.check()
        return is_computed

    def check(self) -> None:
        """Assert that both tables equal the results of their queries, and that the stored row counts are right."""
        with self.database.organization(self.id) as connection:
            for table, query, parameters in (
                (CONTACT_MAPPING, "contact_mapping", {}),
                (ACTIVE_PATIENTS, "active_patients", self.parameters),
            ):
                columns = ", ".join(table.written)
                stored = connection.execute(sa.text(f"select {columns} from {table.qualified}"))
                computed = connection.execute(
                    sa.text(f"select {columns} from ({sql(f'transforms/{query}')}) as computed"), parameters
                )
                assert sorted(map(repr, stored)) == sorted(map(repr, computed)), table.name
            for table in WATCHED:
                counted = connection.execute(sa.text(f"select count(*) from {table.qualified}")).scalar_one()
                assert derivations.row_count(connection, table.schema, table.name) == counted, table.name

    def rows(self, table: str) -> list[dict[str, Any]]:
        with self.database.organization(self.id) as connection:
            rows = connection.execute(sa.text(f"select * from {table}")).mappings()
            return sorted((dict(row) for row in rows), key=lambda row: str(row.get("id", row)))

    def execute(self, statement: str, **values: object) -> None:
        """Execute in the organization context, or as the operator if the statement concerns contacts."""
        of_contacts = "public.contacts" in statement
        with self.database.operator() if of_contacts else self.database.organization(self.id) as connection:
            connection.execute(sa.text(statement), {"organization_id": self.id, **values})

    def upsert(self, table: Table, row: dict[str, object]) -> None:
        with self.database.organization(self.id) as connection:
            dates = {"created_at": LONG_AGO, "updated_at": LONG_AGO}
            upsert(connection, table, [tuple((dates | row).get(column) for column in table.written)])

    def patient(self, number: str, **given: object) -> None:
        self.upsert(PATIENTS, {"id": number, "first_name": "Ann", "last_name": "Lee", **given})

    def appointment(self, number: str, kind: str, starts_at: datetime, **given: object) -> None:
        row = {"id": number, "kind": kind, "starts_at": starts_at, "did_not_arrive": False, "practitioner_id": "1"}
        self.upsert(APPOINTMENTS, row | given)

    def attendee(self, number: str, booking: str, patient: str, **given: object) -> None:
        self.upsert(ATTENDEES, {"id": number, "booking_id": booking, "patient_id": patient, **given})

    def contact(self, number: int, name: str, email: str | None = None, of: str | None = None) -> None:
        self.execute(
            "insert into public.contacts (id, organization_id, cliniko_patient_id, name, email)"
            " values (:id, :organization_id, :of, :name, :email) on conflict (id) do update"
            " set cliniko_patient_id = excluded.cliniko_patient_id, name = excluded.name, email = excluded.email",
            # Contact ids are unique across organizations.
            id=UUID(int=UUID(self.id.removeprefix("clinic-")).int ^ number),
            of=of,
            name=name,
            email=email,
        )
