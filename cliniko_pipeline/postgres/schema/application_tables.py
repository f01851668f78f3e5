"""What the application may have done to the tables that the pipeline writes, and what that means for a sync."""

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ProgrammingError

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS

_NAME = f"{ACTIVE_PATIENTS.schema}.{ACTIVE_PATIENTS.name}"

PRIVILEGES = {
    "organizations": "select, insert",
    "api_credentials": "select, insert, update, delete",
    "contacts": "select",
}
"""What the database user does with the application's tables, where it does not own them."""

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
"""The types that columns of the application's tables may have, the usual one first; others may have any."""


def require_privileges(connection: Connection, *, migrates: bool) -> None:
    """Raise DatabaseSetupError, with the statements that mend it, where the database user lacks a privilege on the
    application's tables, or, where it `migrates`, to make and change what is the pipeline's.
    """
    parameters = {"tables": list(PRIVILEGES), "privileges": list(PRIVILEGES.values())}
    parameters |= {"migrates": migrates, "active_patients": _NAME}
    remedies = list(connection.execute(sa.text(sql("roles/missing_privileges")), parameters).scalars())
    if remedies:
        raise DatabaseSetupError(
            f"The database user lacks privileges: run `{'; '.join(remedies)}` as the owner of these objects, or as a"
            " superuser. Nothing was changed."
        )


def require_own_objects(connection: Connection) -> None:
    """Raise DatabaseSetupError where something in the schema cliniko belongs to others."""
    foreign = connection.execute(sa.text(sql("roles/foreign_owners"))).one_or_none()
    if foreign is not None:
        raise DatabaseSetupError(
            f"Objects in the schema cliniko belong to {foreign.owner}, and {foreign.database_user} may not change them:"
            f" migrate as {foreign.owner}, or make {foreign.database_user} their owner (docs/database.md,"
            ' "Change the database user"). Nothing was changed.'
        )


def require_usable_types(types: Mapping[str, Mapping[str, str]]) -> None:
    """Raise DatabaseSetupError where a column, of the types by name of each table, is of one that cannot be used."""
    for table, usable in USABLE_TYPES.items():
        for column, allowed in usable.items():
            found = types.get(table, {}).get(column, allowed[0])
            if found not in allowed:
                raise DatabaseSetupError(
                    f"The column {column} of public.{table} is of type {found}: the pipeline needs"
                    f" {' or '.join(allowed)}. Run `alter table public.{table} alter column {column} type"
                    f" {allowed[0]} using {column}::{allowed[0]}`, with what refers to it. Nothing was changed."
                )


def require_no_unknown_obligations(connection: Connection) -> None:
    """Raise DatabaseSetupError where active_patients has a column that must have a value and gets none."""
    known = ["organization_id", *ACTIVE_PATIENTS.written, *ACTIVE_PATIENTS.stamps]
    rows = connection.execute(sa.text(sql("schema/obligatory_columns")), {"table": _NAME, "known": known})
    columns = list(rows.scalars())
    if columns:
        raise DatabaseSetupError(
            f"{_NAME} has columns that must not be null, have no default, and that the pipeline does not know:"
            f" {', '.join(columns)}. Run `alter table {_NAME} alter column {columns[0]} set default ...`, or"
            " `... drop not null`."
        )


def require_room_for_every_contact(connection: Connection) -> None:
    """Raise DatabaseSetupError where active_patients has one row a contact at most and rows of no organization, or of
    another one than the contact's: an organization cannot see them, and would collide with them at every sync.

    Opens the table to its owner, in a transaction that the caller rolls back.
    """
    names = connection.execute(sa.text(sql("schema/keys_without_organization")), {"table": _NAME}).scalars().all()
    if not names:
        return
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"alter table {_NAME} no force row level security")
    except ProgrammingError:  # not the owner: what cannot be seen is noticed by the rows that are tried
        return
    rows = connection.execute(sa.text(sql("schema/misplaced_active_patients"))).scalar_one()
    if rows:
        raise DatabaseSetupError(
            f"{rows} rows of {_NAME} have no organization, or another one than their contact, and {', '.join(names)}"
            " allows one row a contact: no sync could write the right ones. Remove them as a role with BYPASSRLS"
            f" (`delete from {_NAME} as row where not exists (select from public.contacts as contact where contact.id ="
            " row.contact_id and contact.organization_id::text = row.organization_id::text)`): the next syncs write"
            " what is missing then."
        )


def views_to_review(connection: Connection) -> list[str]:
    """Return what to do about the application's views of active_patients, in words: row-level security holds there."""
    rows = connection.execute(sa.text(sql("schema/views_of_table")), {"table": _NAME}).all()
    return [
        f"The view {row.name} reads {_NAME} with the rights of {row.reader}: it shows rows only where"
        " app.organization_id is set. To show all, run"
        f" `create policy application_reads on {_NAME} for select to {row.reader} using (true)`"
        ' (docs/database.md, "Read active_patients from the application").'
        for row in rows
    ]
