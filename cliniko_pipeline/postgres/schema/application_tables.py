"""The application's tables, and the checks that the pipeline can use them."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ProgrammingError

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.schema.inventory import Key, missing_keys
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS

_NAME = f"{ACTIVE_PATIENTS.schema}.{ACTIVE_PATIENTS.name}"

APPLICATION_TABLES = {
    "organizations": ("id", "name"),
    "api_credentials": (
        "id",
        "organization_id",
        "service_name",
        "credentials_encrypted",
        "is_active",
        "last_validated_at",
        "created_by",
        "updated_at",
    ),
    "contacts": ("id", "organization_id", "cliniko_patient_id", "name", "email"),
}
"""The application's tables in the schema public, and their columns that the pipeline needs."""

PRIVILEGES = {
    "organizations": "select, insert",
    "api_credentials": "select, insert, update, delete",
    "contacts": "select",
}
"""The privileges that the database user needs on the application's tables."""

_ARRAYS = ("jsonb", "json", "text")
_INSTANTS = ("timestamp without time zone", "timestamp with time zone")
_NUMBERS = ("integer", "bigint", "smallint")
USABLE_TYPES = {
    "contacts": {"id": ("uuid",)},
    "api_credentials": {"credentials_encrypted": _ARRAYS, "is_active": ("boolean",)},
    ACTIVE_PATIENTS.name: {
        "contact_id": ("uuid",),
        "recent_appointment_count": _NUMBERS,
        "upcoming_appointment_count": _NUMBERS,
        "total_appointment_count": _NUMBERS,
        "last_appointment_date": _INSTANTS,
        "recent_appointments": _ARRAYS,
        "upcoming_appointments": _ARRAYS,
        "search_date_from": _INSTANTS,
        "search_date_to": _INSTANTS,
    },
}
"""The allowed types of columns, the usual type first. All other columns may have any type."""


def require_application_tables(connection: Connection) -> None:
    """Raise DatabaseSetupError if an application table or active_patients is missing or unusable."""
    names = [*APPLICATION_TABLES, ACTIVE_PATIENTS.name]
    rows = connection.execute(sa.text(sql("schema/columns")), {"schema": "public", "names": names})
    found = {row.table_name: row for row in rows}
    for table, needed in APPLICATION_TABLES.items():
        if table not in found:
            raise DatabaseSetupError(
                f"The table public.{table} is missing: point DATABASE_URL at the application's database, or create the"
                " table there (docs/database.md lists its columns)."
            )
        _require_columns(table, needed, found[table].column_names)
    _require_usable_types(
        {name: dict(zip(row.column_names, row.column_types, strict=True)) for name, row in found.items()}
    )
    require_privileges(connection, migrates=False)
    if missing_keys(connection, [Key("public.api_credentials", ("organization_id", "service_name"))]):
        raise DatabaseSetupError(
            "The table public.api_credentials has no unique constraint on organization_id and service_name: remove"
            " duplicate rows, and run `create unique index on public.api_credentials (organization_id, service_name)`."
        )
    if ACTIVE_PATIENTS.name in found:
        existing = found[ACTIVE_PATIENTS.name]
        if not existing.is_table:
            raise DatabaseSetupError(
                f"public.{ACTIVE_PATIENTS.name} is a view, but the pipeline needs this name for a table: rename the"
                " view."
            )
        needed = ("id", "organization_id", *ACTIVE_PATIENTS.written, *ACTIVE_PATIENTS.stamps)
        _require_columns(ACTIVE_PATIENTS.name, needed, existing.column_names)
        _require_no_unknown_obligations(connection)


def _require_columns(table: str, needed: Sequence[str], found: Sequence[str]) -> None:
    missing = [column for column in needed if column not in found]
    if missing:
        raise DatabaseSetupError(
            f"The table public.{table} lacks {', '.join(missing)}: add the columns (docs/database.md lists them)."
        )


def require_privileges(connection: Connection, *, migrates: bool) -> None:
    """Raise DatabaseSetupError, with the `grant` statements, if the database user lacks a privilege.

    With `migrates`, privileges to create and change the pipeline's objects are required, too.
    """
    parameters = {"tables": list(PRIVILEGES), "privileges": list(PRIVILEGES.values())}
    parameters |= {"migrates": migrates, "active_patients": _NAME}
    grants = list(connection.execute(sa.text(sql("roles/missing_privileges")), parameters).scalars())
    if grants:
        raise DatabaseSetupError(
            f"The database user lacks privileges: run `{'; '.join(grants)}` as the owner of these objects, or as a"
            " superuser. Nothing was changed."
        )


def require_own_objects(connection: Connection) -> None:
    """Raise DatabaseSetupError if an object in the schema cliniko has another owner."""
    foreign = connection.execute(sa.text(sql("roles/foreign_owners"))).one_or_none()
    if foreign is not None:
        raise DatabaseSetupError(
            f"Objects in the schema cliniko belong to {foreign.owner}, and {foreign.database_user} may not change them:"
            f" migrate as {foreign.owner}, or make {foreign.database_user} their owner (docs/database.md,"
            ' "Change the database user"). Nothing was changed.'
        )


def _require_usable_types(types: Mapping[str, Mapping[str, str]]) -> None:
    for table, usable in USABLE_TYPES.items():
        for column, allowed in usable.items():
            found = types.get(table, {}).get(column, allowed[0])
            if found not in allowed:
                raise DatabaseSetupError(
                    f"The column {column} of public.{table} is of type {found}: the pipeline needs"
                    f" {' or '.join(allowed)}. Run `alter table public.{table} alter column {column} type"
                    f" {allowed[0]} using {column}::{allowed[0]}`, and change columns that refer to it, too. Nothing"
                    " was changed."
                )


def _require_no_unknown_obligations(connection: Connection) -> None:
    known = ["organization_id", *ACTIVE_PATIENTS.written, *ACTIVE_PATIENTS.stamps]
    rows = connection.execute(sa.text(sql("schema/obligatory_columns")), {"table": _NAME, "known": known})
    columns = list(rows.scalars())
    if columns:
        raise DatabaseSetupError(
            f"The pipeline does not write the columns {', '.join(columns)} of {_NAME}, which are not null and have no"
            f" default. Run `alter table {_NAME} alter column {columns[0]} set default ...`, or `... drop not null`."
        )


def require_room_for_every_contact(connection: Connection) -> None:
    """Raise DatabaseSetupError if rows with a wrong organization block correct rows of active_patients.

    A unique index on the contact alone allows one row per contact. Row-level security hides a wrong row from the
    contact's organization, and this organization's syncs fail. This function switches row-level security off for the
    table's owner, so the caller must roll back.
    """
    names = connection.execute(sa.text(sql("schema/keys_without_organization")), {"table": _NAME}).scalars().all()
    if not names:
        return
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"alter table {_NAME} no force row level security")
    except ProgrammingError:  # Only the owner may do this. For other users, the rehearsal only tests one row.
        return
    rows = connection.execute(sa.text(sql("schema/misplaced_active_patients"))).scalar_one()
    if rows:
        raise DatabaseSetupError(
            f"{rows} rows of {_NAME} have no organization or not the organization of their contact. They block correct"
            f" rows, because {', '.join(names)} allows one row per contact. Delete them as a role with BYPASSRLS"
            f" (`delete from {_NAME} as row where not exists (select from public.contacts as contact where contact.id ="
            " row.contact_id and contact.organization_id::text = row.organization_id::text)`). The next syncs write the"
            " missing rows."
        )


def views_to_review(connection: Connection) -> list[str]:
    """Return warnings about views of active_patients whose rows are limited by row-level security."""
    rows = connection.execute(sa.text(sql("schema/views_of_table")), {"table": _NAME}).all()
    return [
        f"The view {row.name} reads {_NAME} with the privileges of {row.reader}. It shows only the rows of the"
        " organization in the setting app.organization_id. To show all rows, run"
        f" `create policy application_reads on {_NAME} for select to {row.reader} using (true)`"
        ' (docs/database.md, "Read active_patients from the application").'
        for row in rows
    ]
