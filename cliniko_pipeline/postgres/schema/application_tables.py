"""The application's tables, and what the pipeline needs of them."""

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
"""The application's tables in schema public and the columns of them that the pipeline needs."""

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
"""The possible types of columns of the application's tables, the usual one first. Other columns may have any type."""


def require_application_tables(connection: Connection) -> None:
    """Raise DatabaseSetupError where the pipeline cannot use a table of the application, or active_patients."""
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
            "The table public.api_credentials has no unique constraint by which credentials are found again: run"
            " `create unique index on public.api_credentials (organization_id, service_name)`, after removing"
            " duplicate rows."
        )
    if ACTIVE_PATIENTS.name in found:
        existing = found[ACTIVE_PATIENTS.name]
        if not existing.is_table:
            raise DatabaseSetupError(
                f"public.{ACTIVE_PATIENTS.name} is a view: the pipeline writes a table of that name; rename the view."
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
    """Raise DatabaseSetupError, with the statements that grant it, where the database user lacks a privilege.

    `migrates`: privileges to create and change the pipeline's objects are needed, too.
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
    """Raise DatabaseSetupError where an object in the schema cliniko belongs to another role."""
    foreign = connection.execute(sa.text(sql("roles/foreign_owners"))).one_or_none()
    if foreign is not None:
        raise DatabaseSetupError(
            f"Objects in the schema cliniko belong to {foreign.owner}, and {foreign.database_user} may not change them:"
            f" migrate as {foreign.owner}, or make {foreign.database_user} their owner (docs/database.md,"
            ' "Change the database user"). Nothing was changed.'
        )


def _require_usable_types(types: Mapping[str, Mapping[str, str]]) -> None:
    """Raise DatabaseSetupError where a column has an unusable type; `types`: by table and column."""
    for table, usable in USABLE_TYPES.items():
        for column, allowed in usable.items():
            found = types.get(table, {}).get(column, allowed[0])
            if found not in allowed:
                raise DatabaseSetupError(
                    f"The column {column} of public.{table} is of type {found}: the pipeline needs"
                    f" {' or '.join(allowed)}. Run `alter table public.{table} alter column {column} type"
                    f" {allowed[0]} using {column}::{allowed[0]}`, with what refers to it. Nothing was changed."
                )


def _require_no_unknown_obligations(connection: Connection) -> None:
    """Raise DatabaseSetupError where active_patients has an unknown column that is not null and has no default."""
    known = ["organization_id", *ACTIVE_PATIENTS.written, *ACTIVE_PATIENTS.stamps]
    rows = connection.execute(sa.text(sql("schema/obligatory_columns")), {"table": _NAME, "known": known})
    columns = list(rows.scalars())
    if columns:
        raise DatabaseSetupError(
            f"{_NAME} has columns without default that must not be null, and that the pipeline does not write:"
            f" {', '.join(columns)}. Run `alter table {_NAME} alter column {columns[0]} set default ...`, or"
            " `... drop not null`."
        )


def require_room_for_every_contact(connection: Connection) -> None:
    """Raise DatabaseSetupError where rows of a wrong organization block the unique contacts of active_patients.

    Row-level security hides such rows from the contact's organization, and every sync would conflict with them. Takes
    row-level security off the table, in a transaction that the caller rolls back.
    """
    names = connection.execute(sa.text(sql("schema/keys_without_organization")), {"table": _NAME}).scalars().all()
    if not names:
        return
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"alter table {_NAME} no force row level security")
    except ProgrammingError:  # not the owner; the rehearsal writes a row as well
        return
    rows = connection.execute(sa.text(sql("schema/misplaced_active_patients"))).scalar_one()
    if rows:
        raise DatabaseSetupError(
            f"{rows} rows of {_NAME} have no organization, or another one than their contact, and {', '.join(names)}"
            " allows one row a contact: no sync can write the correct ones. Remove them as a role with BYPASSRLS"
            f" (`delete from {_NAME} as row where not exists (select from public.contacts as contact where contact.id ="
            " row.contact_id and contact.organization_id::text = row.organization_id::text)`). The next syncs write the"
            " missing rows."
        )


def views_to_review(connection: Connection) -> list[str]:
    """Return warnings about the application's views of active_patients, which row-level security applies to."""
    rows = connection.execute(sa.text(sql("schema/views_of_table")), {"table": _NAME}).all()
    return [
        f"The view {row.name} reads {_NAME} with the privileges of {row.reader}: it shows rows only where"
        " app.organization_id is set. To show all rows, run"
        f" `create policy application_reads on {_NAME} for select to {row.reader} using (true)`"
        ' (docs/database.md, "Read active_patients from the application").'
        for row in rows
    ]
