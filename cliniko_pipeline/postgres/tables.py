"""The tenant tables the pipeline writes: what identifies a row, and what a merge compares and sets.

The columns are made by `migrations`; a test holds the two against each other. `organization_id` stands in every
table and in none of these lists: it comes from the organization context alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A tenant table.

    Attributes:
        schema, name: where it stands.
        key: the columns that identify a row within an organization.
        columns: the other columns a writer gives.
        arrays: those of them that hold JSON.
        stamps: columns set to the time of the transaction whenever a row is inserted or changed.
        inserted: the one of them that is set on insert only, if any.
        vanishes: whether a full crawl marks rows it did not see (`vanished_at`); a row that is written is there again.
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
        """`"schema"."table"`, quoted."""
        return f'"{self.schema}"."{self.name}"'

    @property
    def written(self) -> tuple[str, ...]:
        """Everything a writer gives: the key, then the other columns."""
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
"""The tables of which every change is noted (`cliniko.table_states`), so that nothing is computed again in vain."""


@dataclass(frozen=True)
class ResourceRows:
    """Where the rows of one of Cliniko's resources stand: `condition` tells them from others of the table, in SQL."""

    table: Table
    condition: str = "true"


RECONCILED = {
    "patients": ResourceRows(PATIENTS),
    "individual_appointments": ResourceRows(APPOINTMENTS, "record.kind = 'individual'"),
    "group_appointments": ResourceRows(APPOINTMENTS, "record.kind = 'group'"),
    "attendees": ResourceRows(ATTENDEES),
}
"""The resources of which it matters whether Cliniko still has a record."""

TENANT_TABLES = (
    *(table.qualified for table in WRITTEN),
    "cliniko.crawls",
    "cliniko.crawled_ids",
    "cliniko.rejected_records",
    "cliniko.sync_runs",
    "cliniko.table_states",
)
"""Every table that holds an organization's data, quoted for SQL; all under forced row-level security."""
