"""Routes that return active patients in pages of JSON or CSV, and their number over time."""

import base64
import binascii
import csv
import io
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from cliniko_pipeline.api.etags import etag, etag_matches
from cliniko_pipeline.api.gate import ReadableOrganization, RuntimeDependency
from cliniko_pipeline.api.problems import documented, not_found
from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.postgres.operator_tables import sync_runs
from cliniko_pipeline.postgres.reads import active_patients
from cliniko_pipeline.postgres.reads.active_patients import Filters, Order, Place

MAX_PAGE_ROWS = 1000
MAX_CURSOR_LENGTH = 400
MAX_CONTACTS = 100
JSON, CSV = "application/json", "text/csv"

router = APIRouter(prefix="/v1/organizations/{organization_id}", tags=["active patients"])


def _require_instant(value: object) -> object:
    # pydantic would read a number as seconds since 1970.
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d[Tt ]", value):
        raise ValueError("must be an instant such as 2026-01-31T09:30:00Z")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be an instant of the years 1 to 9999 in UTC") from None


Instant = Annotated[AwareDatetime, BeforeValidator(_require_instant), AfterValidator(_to_utc)]


class Attendance(BaseModel):
    """An individual appointment, or a place in a group appointment."""

    id: str = Field(examples=["1234567890123"], description="Cliniko's id of the individual or group appointment.")
    kind: Literal["individual", "group"]
    starts_at: AwareDatetime
    ends_at: AwareDatetime | None
    appointment_type: str | None = Field(examples=["Initial consultation"])
    practitioner: str | None = Field(examples=["Dana Example"])
    did_not_arrive: bool


class ActivePatient(BaseModel):
    """A person with a contact and at least one recent appointment."""

    contact_id: UUID
    recent_appointment_count: int = Field(
        examples=[3],
        description="Appointments from `search_date_from` to `search_date_to`, which are 60 days apart by default.",
    )
    upcoming_appointment_count: int = Field(examples=[1], description="Appointments after `search_date_to`.")
    total_appointment_count: int = Field(examples=[17], description="Appointments at any time.")
    last_appointment_date: AwareDatetime | None
    recent_appointments: list[Attendance] = Field(description="The latest first.")
    upcoming_appointments: list[Attendance] = Field(description="The soonest first.")
    search_date_from: AwareDatetime
    search_date_to: AwareDatetime = Field(description="The instant that the sync used as the current time.")


class ActivePatientsPage(BaseModel):
    """A page of active patients, all written by one sync."""

    items: list[ActivePatient]
    next_cursor: str | None = Field(description="Cursor of the next page, or null on the last page.")


class DayOfTrend(BaseModel):
    """The number of active patients at the end of a UTC day."""

    day: str = Field(examples=["2026-06-15"])
    active_patients: int = Field(examples=[225])


class Trend(BaseModel):
    """The days with a sync, the earliest first."""

    items: list[DayOfTrend]


class PageQuery(BaseModel):
    """Filters, order and page of a request."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=100, ge=1, le=MAX_PAGE_ROWS)
    cursor: str | None = Field(
        default=None,
        max_length=MAX_CURSOR_LENGTH,
        description="`next_cursor` of the previous page. Send the same `sort` and `order` with it.",
    )
    sort: Order = Order.LAST_APPOINTMENT
    order: Literal["asc", "desc"] = "desc"
    has_upcoming: bool | None = Field(
        default=None, description="Only patients with (true) or without (false) an upcoming appointment."
    )
    last_appointment_from: Instant | None = Field(
        default=None,
        description="Only patients whose last appointment was at this instant or later.",
        examples=["2026-05-01T00:00:00Z"],
    )
    last_appointment_before: Instant | None = Field(
        default=None,
        description="Only patients whose last appointment was before this instant.",
        examples=["2026-06-01T00:00:00Z"],
    )
    contact_id: list[UUID] | None = Field(
        default=None, max_length=MAX_CONTACTS, description="Only these contacts. Repeat the parameter for several."
    )

    @property
    def filters(self) -> Filters:
        """The filters of the database query."""
        contacts = None if self.contact_id is None else tuple(self.contact_id)
        return Filters(self.has_upcoming, self.last_appointment_from, self.last_appointment_before, contacts)


class _Cursor(BaseModel):
    """Position of the last row of a page. Clients treat the encoded cursor as opaque."""

    sort: Order
    order: Literal["asc", "desc"]
    value: Annotated[AwareDatetime, AfterValidator(_to_utc)] | int | None
    contact_id: UUID

    def encode(self) -> str:
        return base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, query: PageQuery) -> Self:
        """Return the cursor. Raise ArgumentError if it is malformed or has another sort or order."""
        try:
            cursor = cls.model_validate_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (ValueError, binascii.Error):
            cursor = None
        if cursor is None or cursor.sort != query.sort or cursor.order != query.order or not cursor.has_valid_value():
            raise ArgumentError(
                "The cursor is invalid: send `next_cursor` of the previous page, with the same sort and order."
            )
        return cursor

    def has_valid_value(self) -> bool:
        """Return whether the value has the type of the sort column."""
        match self.sort:
            case Order.CONTACT:
                return self.value is None
            case Order.LAST_APPOINTMENT:
                return isinstance(self.value, datetime)
            case _:
                return isinstance(self.value, int) and abs(self.value) < 2**31


PAGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ActivePatientsPage,
        "description": "The page. The header `Link` has the address of the next page.",
        "content": {CSV: {"schema": {"type": "string"}}},
    },
    304: {"description": "The page has not changed since it had this ETag."},
    **documented(401, 403, 404, 422, 429, 503),
}


@router.get("/active-patients", responses=PAGE_RESPONSES, response_class=Response)
def list_active_patients(
    request: Request,
    runtime: RuntimeDependency,
    organization: ReadableOrganization,
    query: Annotated[PageQuery, Query()],
    accept: Annotated[str, Header(description="Send text/csv to get the page as CSV.")] = JSON,
    if_none_match: Annotated[str, Header(description="ETag of a stored page. An unchanged page gets status 304.")] = "",
) -> Response:
    """List the organization's active patients. Each is on exactly one page, unless a sync ends between two requests."""
    cursor = None if query.cursor is None else _Cursor.decode(query.cursor, query)
    after = None if cursor is None else Place(cursor.value, cursor.contact_id)
    with runtime.database.organization(organization.id) as connection:
        found = active_patients.page(
            connection,
            query.sort,
            descending=query.order == "desc",
            filters=query.filters,
            after=after,
            limit=query.limit + 1,
        )
    rows = [dict(row) for row in found[: query.limit]]
    next_cursor = _cursor_after(rows[-1], query) if len(found) > query.limit else None
    as_csv = _prefers_csv(accept)
    body = _csv(rows) if as_csv else _json({"items": rows, "next_cursor": next_cursor})
    headers = {"ETag": etag(body), "Vary": "Accept, Authorization", "Cache-Control": "private, no-cache"}
    if next_cursor is not None:
        # The path is encoded again, because an id may contain characters that a header must not contain.
        path = quote(request.scope["path"], safe="/")
        headers["Link"] = f'<{path}?{request.url.include_query_params(cursor=next_cursor).query}>; rel="next"'
    if etag_matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=CSV if as_csv else JSON, headers=headers)


@router.get(
    "/active-patients/{contact_id}", response_model=ActivePatient, responses=documented(401, 403, 404, 422, 429, 503)
)
def get_active_patient(runtime: RuntimeDependency, organization: ReadableOrganization, contact_id: UUID) -> Any:
    """Return an active patient by its contact."""
    with runtime.database.organization(organization.id) as connection:
        row = active_patients.one(connection, contact_id)
    if row is None:
        raise not_found()
    return row


@router.get("/active-patients-trend", responses=documented(401, 403, 404, 422, 429, 503))
def get_trend(
    runtime: RuntimeDependency,
    organization: ReadableOrganization,
    days: Annotated[int, Query(ge=1, le=730)] = 90,
) -> Trend:
    """Return the number of active patients day by day."""
    with runtime.database.organization(organization.id) as connection:
        found = sync_runs.trend(connection, days)
    return Trend(items=[DayOfTrend(day=row.day.isoformat(), active_patients=row.active_patients) for row in found])


def _cursor_after(row: dict[str, Any], query: PageQuery) -> str:
    value = None if query.sort is Order.CONTACT else row[query.sort.value]
    return _Cursor(sort=query.sort, order=query.order, value=value, contact_id=row["contact_id"]).encode()


def _prefers_csv(accept: str) -> bool:
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    return CSV in kinds and (JSON not in kinds or kinds.index(CSV) < kinds.index(JSON))


def _json(content: dict[str, Any]) -> bytes:
    # FastAPI's response models are not used here, because they would take ten times as long.
    return json.dumps(content, default=_text, separators=(",", ":")).encode()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(ActivePatient.model_fields)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in ActivePatient.model_fields])
    return out.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value)
    return _text(value) if isinstance(value, datetime | UUID) else value


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value)
