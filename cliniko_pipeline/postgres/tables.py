"""The tenant tables that merges write, with their keys and columns.

`migrations` creates the columns, and a test compares them with this module. Every table also has `organization_id`. The
lists here leave this column out, because its value comes from the organization context only.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A tenant table.

    Attributes:
        schema: the name of the schema.
        name: the name of the table.
        key: the columns that identify a row within an organization.
        columns: the other columns that a merge sets.
        stamps: the columns that are set to the transaction's time when a row is inserted or changed.
        inserted: the one of `stamps` that is set on insert only.
        arrays: the columns with JSON arrays.
        vanishes: whether full crawls set `vanished_at`. A later write of the row clears this column.
    """

    schema: str
    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    stamps: tuple[str, ...] = ()
    inserted: str | None = None
    arrays: tuple[str, ...] = ()
    vanishes: bool = False

    @property
    def qualified(self) -> str:
        """Return `"schema"."table"`, quoted."""
        return f'"{self.schema}"."{self.name}"'

    @property
    def written(self) -> tuple[str, ...]:
        """Return the columns that a merge sets, the key's columns first."""
        return self.key + self.columns


_RECORD_STAMPS = ("created_at", "updated_at")

PATIENTS = Table(
    "cliniko",
    "patients",
    key=("id",),
    columns=(
        "first_name",
        "last_name",
        "email",
        "archived_at",
        "deleted_at",
        "merged_at",
        "merged_into_id",
        *_RECORD_STAMPS,
    ),
    stamps=("synced_at",),
    vanishes=True,
)

APPOINTMENTS = Table(
    "cliniko",
    "appointments",
    key=("kind", "id"),
    columns=(
        "patient_id",
        "appointment_type_id",
        "practitioner_id",
        "starts_at",
        "ends_at",
        "cancelled_at",
        "archived_at",
        "deleted_at",
        "did_not_arrive",
        *_RECORD_STAMPS,
    ),
    stamps=("synced_at",),
    vanishes=True,
)

ATTENDEES = Table(
    "cliniko",
    "attendees",
    key=("id",),
    columns=(
        "booking_id",
        "patient_id",
        "arrived",
        "cancelled_at",
        "archived_at",
        "deleted_at",
        *_RECORD_STAMPS,
    ),
    stamps=("synced_at",),
    vanishes=True,
)

APPOINTMENT_TYPES = Table(
    "cliniko",
    "appointment_types",
    key=("id",),
    columns=("name", *_RECORD_STAMPS),
    stamps=("synced_at",),
)

PRACTITIONERS = Table(
    "cliniko",
    "practitioners",
    key=("id",),
    columns=("name", *_RECORD_STAMPS),
    stamps=("synced_at",),
)

CONTACT_MAPPING = Table(
    "cliniko",
    "contact_mapping",
    key=("patient_id",),
    columns=("contact_id", "status", "method", "candidate_count"),
    stamps=("created_at", "updated_at"),
    inserted="created_at",
)

ACTIVE_PATIENTS = Table(
    "public",
    "active_patients",
    key=("contact_id",),
    columns=(
        "recent_appointment_count",
        "upcoming_appointment_count",
        "total_appointment_count",
        "last_appointment_date",
        "recent_appointments",
        "upcoming_appointments",
        "search_date_from",
        "search_date_to",
    ),
    stamps=("created_at", "updated_at"),
    inserted="created_at",
    arrays=("recent_appointments", "upcoming_appointments"),
)

WRITTEN = (
    PATIENTS,
    APPOINTMENTS,
    ATTENDEES,
    APPOINTMENT_TYPES,
    PRACTITIONERS,
    CONTACT_MAPPING,
    ACTIVE_PATIENTS,
)
"""The tables that merges write."""

WATCHED = (PATIENTS, APPOINTMENTS, ATTENDEES, CONTACT_MAPPING)
"""The tables with triggers that record changes in `cliniko.table_states` (see writing/derivations.py)."""


RECONCILED = frozenset({"patients", "individual_appointments", "group_appointments", "attendees"})
"""The resources whose missing records a full crawl marks as deleted (see stored_records.sql)."""

TENANT_TABLES = (
    *(table.qualified for table in WRITTEN),
    "cliniko.crawls",
    "cliniko.crawled_ids",
    "cliniko.rejected_records",
    "cliniko.sync_runs",
    "cliniko.daily_active_patients",
    "cliniko.table_states",
)
"""The qualified names of all tables with organizations' data. They have forced row-level security."""
