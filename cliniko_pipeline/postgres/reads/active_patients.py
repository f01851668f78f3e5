"""Pages of `public.active_patients`, in the caller's organization context.

A page is read by one statement, so all its rows are from the same sync. Each page starts after the last row of the
previous page. Each order has an index, so all pages are equally fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement


class Order(StrEnum):
    """The columns that pages can be sorted by. Rows with equal values are sorted by contact."""

    CONTACT = "contact_id"
    LAST_APPOINTMENT = "last_appointment_date"
    RECENT = "recent_appointment_count"
    UPCOMING = "upcoming_appointment_count"
    TOTAL = "total_appointment_count"


@dataclass(frozen=True)
class Filters:
    """Conditions that active patients must meet. None is no condition.

    Attributes:
        has_upcoming: whether the patient has an upcoming appointment.
        last_from: the earliest time of the last appointment (aware, inclusive).
        last_before: the latest time of the last appointment (aware, exclusive).
        contact_ids: the patients' contacts.
    """

    has_upcoming: bool | None = None
    last_from: datetime | None = None
    last_before: datetime | None = None
    contact_ids: tuple[UUID, ...] | None = None


@dataclass(frozen=True)
class Place:
    """The end of a page: the last row's value in the sort column, and its contact."""

    value: datetime | int | None
    contact_id: UUID


def page(
    connection: Connection,
    order: Order,
    *,
    descending: bool,
    filters: Filters,
    after: Place | None,
    limit: int,
) -> Sequence[sa.RowMapping]:
    """Return up to `limit` rows that come after `after`; None is the beginning."""
    conditions, parameters = _conditions(filters)
    sign, direction = ("<", "desc") if descending else (">", "asc")
    if after is not None and order is Order.CONTACT:
        conditions.append(f"patient.contact_id {sign} :after_contact")
    elif after is not None:
        conditions.append(f"(patient.{order}, patient.contact_id) {sign} (:after_value, :after_contact)")
    if after is not None:
        parameters |= {"after_value": _stored(after.value), "after_contact": after.contact_id}
    # The qualified names are the table's columns, which have indexes. Unqualified names would be the output columns.
    columns = "patient.contact_id" if order is Order.CONTACT else f"patient.{order} {direction}, patient.contact_id"
    text = sql("reads/active_patients_page").format(
        conditions="".join(f"\n    and {each}" for each in conditions), order=f"{columns} {direction}"
    )
    return connection.execute(statement(text), parameters | {"limit": limit}).mappings().all()


def one(connection: Connection, contact_id: UUID) -> sa.RowMapping | None:
    """Return the contact's row, or None if the contact has no active patient."""
    found = page(
        connection,
        Order.CONTACT,
        descending=False,
        filters=Filters(contact_ids=(contact_id,)),
        after=None,
        limit=1,
    )
    return next(iter(found), None)


def _conditions(filters: Filters) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    if filters.has_upcoming is not None:
        conditions.append(f"patient.upcoming_appointment_count {'>' if filters.has_upcoming else '='} 0")
    if filters.last_from is not None:
        conditions.append("patient.last_appointment_date >= :last_from")
        parameters["last_from"] = _stored(filters.last_from)
    if filters.last_before is not None:
        conditions.append("patient.last_appointment_date < :last_before")
        parameters["last_before"] = _stored(filters.last_before)
    if filters.contact_ids is not None:
        conditions.append("patient.contact_id = any(:contact_ids)")
        parameters["contact_ids"] = list(filters.contact_ids)
    return conditions, parameters


def _stored(value: datetime | int | None) -> datetime | int | None:
    # The table has UTC times in columns without time zone.
    return value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value
