"""Pages of active patients over HTTP: orders, filters, cursors, ETags and CSV, compared with the stored rows."""

import csv
import io
import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.services import ServiceAlone, add_organization, every_page

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
PATH = "/v1/organizations/alpha/active-patients"
COUNTS = ("recent_appointment_count", "upcoming_appointment_count", "total_appointment_count")
SORTS = ("contact_id", "last_appointment_date", *COUNTS)

INSERT = """
insert into public.active_patients (
    organization_id, contact_id, recent_appointment_count, upcoming_appointment_count, total_appointment_count,
    last_appointment_date, recent_appointments, upcoming_appointments, search_date_from, search_date_to
)
select
    :organization, md5(:organization || n)::uuid, 1 + n % 5, n % 3, 6 + n % 7,
    cast(:now as timestamp) - make_interval(hours => n % 11), :appointments, '[]',
    cast(:now as timestamp) - interval '60 days', :now
from generate_series(1, :rows) as n
"""
APPOINTMENTS = [
    {
        "id": "10",
        "kind": "individual",
        "starts_at": "2026-06-01T09:00:00Z",
        "ends_at": None,
        "appointment_type": 'First; "visit", =1+1',
        "practitioner": "Ünï Cödé",
        "did_not_arrive": False,
    }
]
STORED = {"alpha": 73, "beta": 9, "empty": 0}


@pytest.fixture(scope="module")
def patients(service: ServiceAlone) -> ServiceAlone:
    """The service with the active patients of three organizations."""
    add_organization(service.database, "empty")
    for organization, rows in STORED.items():
        replace(service, organization, rows)
    return service


@contextmanager
def replacing(service: ServiceAlone, organization: str, rows: int, now: datetime = NOW) -> Iterator[Connection]:
    """Replace all rows of the organization as a sync does, in a transaction that is open while the block runs."""
    with service.database.organization(organization) as connection:
        connection.exec_driver_sql("delete from public.active_patients")
        values = {"organization": organization, "rows": rows, "now": now.replace(tzinfo=None)}
        connection.execute(sa.text(INSERT), {**values, "appointments": json.dumps(APPOINTMENTS)})
        yield connection


def replace(*args: Any) -> None:
    with replacing(*args):
        """Nothing else belongs to the transaction."""


@pytest.fixture(scope="module")
def caller(patients: ServiceAlone) -> Iterator[httpx.Client]:
    with patients.client("read", organizations=["alpha", "empty"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(caller: httpx.Client) -> list[dict[str, Any]]:
    found = caller.get(PATH, params={"limit": 1000}).json()
    assert found["next_cursor"] is None
    assert len(found["items"]) == STORED["alpha"]
    return found["items"]


def pages(caller: httpx.Client, path: str = PATH, **query: Any) -> list[list[dict[str, Any]]]:
    return list(every_page(caller, path, query))


instants = st.builds(
    lambda hours, minutes: (NOW + timedelta(hours=hours)).astimezone(timezone(timedelta(minutes=minutes))),
    st.integers(-15, 3),
    st.sampled_from([0, 345, -420]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(15, 200))
@given(data=st.data())
def test_pages_hold_every_row_once_in_order(
    caller: httpx.Client, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    sort = data.draw(st.sampled_from(SORTS))
    order = data.draw(st.sampled_from(["asc", "desc"]))
    limit = data.draw(st.integers(1, 80))
    filters: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "has_upcoming": st.booleans(),
                "last_appointment_from": instants,
                "last_appointment_before": instants,
                "contact_id": st.lists(st.sampled_from([row["contact_id"] for row in rows]), min_size=1, max_size=5),
            },
        )
    )
    query = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in filters.items()}
    found = pages(caller, sort=sort, order=order, limit=limit, **query)
    assert all(len(page) == limit for page in found[:-1])
    expected = [row for row in rows if _matches(row, filters)]
    expected.sort(key=lambda row: (row[sort], row["contact_id"]), reverse=order == "desc")
    assert [row for page in found for row in page] == expected


def _matches(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    last = datetime.fromisoformat(row["last_appointment_date"])
    return (
        filters.get("has_upcoming") in {None, row["upcoming_appointment_count"] > 0}
        and last >= filters.get("last_appointment_from", last)
        and ("last_appointment_before" not in filters or last < filters["last_appointment_before"])
        and row["contact_id"] in filters.get("contact_id", [row["contact_id"]])
    )


def test_page_holds_what_the_table_holds(rows: list[dict[str, Any]], patients: ServiceAlone) -> None:
    with patients.database.organization("alpha") as connection:
        stored = connection.exec_driver_sql("select * from public.active_patients order by id limit 1").mappings().one()
    (row,) = (item for item in rows if item["contact_id"] == str(stored["contact_id"]))
    assert row["recent_appointments"] == stored["recent_appointments"] == APPOINTMENTS
    assert row["search_date_to"] == "2026-06-15T09:30:00Z"
    assert datetime.fromisoformat(row["last_appointment_date"]) == stored["last_appointment_date"].replace(tzinfo=UTC)
    assert [row[name] for name in COUNTS] == [stored[name] for name in COUNTS]


def test_pages_are_linked_for_any_organization_id(patients: ServiceAlone) -> None:
    organization = "clínica 诊所 a?b#c>d %41 line\u2028end"
    add_organization(patients.database, organization)
    replace(patients, organization, 5)
    url = f"/v1/organizations/{quote(organization)}/active-patients?limit=2"
    found: list[str] = []
    with patients.client("read", organizations=[organization]) as caller:
        while url:
            answer = caller.get(url)
            assert answer.status_code == 200, answer.text
            found += [row["contact_id"] for row in answer.json()["items"]]
            url = answer.links.get("next", {}).get("url", "")
            assert httpx.URL(url).params.get("cursor") == answer.json()["next_cursor"]
    assert len(set(found)) == len(found) == 5


def test_readers_see_committed_rows_only(caller: httpx.Client, patients: ServiceAlone) -> None:
    """Readers see the earlier rows during the transaction of a sync, and the later rows after it."""

    def seen(_reader: int) -> tuple[int, set[str]]:
        items = caller.get(PATH.replace("alpha", "empty"), params={"limit": 1000}).json()["items"]
        return len(items), {item["search_date_to"] for item in items}

    replace(patients, "empty", 60)
    with ThreadPoolExecutor(50) as threads:
        with replacing(patients, "empty", 150, NOW + timedelta(minutes=1)):
            during = list(threads.map(seen, range(50)))
        after = list(threads.map(seen, range(50)))
    replace(patients, "empty", 0)
    assert during == [(60, {"2026-06-15T09:30:00Z"})] * 50
    assert after == [(150, {"2026-06-15T09:31:00Z"})] * 50


def test_patient_of_another_organization_is_404(
    caller: httpx.Client, rows: list[dict[str, Any]], patients: ServiceAlone
) -> None:
    contact = rows[0]["contact_id"]
    assert caller.get(f"{PATH}/{contact}").json() == rows[0]
    with patients.database.organization("beta") as connection:
        another = connection.exec_driver_sql("select contact_id from public.active_patients limit 1").scalar_one()
    assert caller.get(f"{PATH}/{another}").status_code == 404
    assert pages(caller, contact_id=str(another)) == pages(caller, PATH.replace("alpha", "empty")) == [[]]


def test_csv_holds_the_same_as_json(caller: httpx.Client, rows: list[dict[str, Any]]) -> None:
    answer = caller.get(PATH, params={"limit": 1000}, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert [
        {name: json.loads(value) if name.endswith(("appointments", "count")) else value for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(answer.text))
    ] == rows


def test_etag_spares_an_unchanged_page(caller: httpx.Client, patients: ServiceAlone) -> None:
    etag = caller.get(PATH).headers["etag"]
    unchanged = caller.get(PATH, headers={"If-None-Match": f'"other", {etag}'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert caller.get(PATH, headers={"If-None-Match": etag, "Accept": "text/csv"}).status_code == 200
    replace(patients, "alpha", STORED["alpha"], NOW + timedelta(minutes=1))
    changed = caller.get(PATH, headers={"If-None-Match": etag})
    replace(patients, "alpha", STORED["alpha"])
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


@pytest.mark.parametrize("array", ["json", "text"])
def test_table_with_other_column_types_is_read_alike(
    caller: httpx.Client, patients: ServiceAlone, rows: list[dict[str, Any]], array: str
) -> None:
    """The application makes this table, so instants may be timestamptz, and arrays may be json or text."""

    def set_types(instant: str, array: str) -> None:
        changes = [
            f"alter {name} type {instant} using {name} at time zone 'UTC'"
            for name in ("last_appointment_date", "search_date_from", "search_date_to")
        ]
        changes.append(f"alter recent_appointments type {array} using recent_appointments::{array}")
        with patients.database.operator() as connection:
            connection.exec_driver_sql(f"alter table public.active_patients {', '.join(changes)}")

    set_types("timestamptz", array)
    try:
        assert [row for page in pages(caller, limit=20) for row in page] == rows
        assert caller.get(f"{PATH}/{rows[0]['contact_id']}").json() == rows[0]
        at = NOW - timedelta(hours=5)
        later = [row for row in rows if datetime.fromisoformat(row["last_appointment_date"]) >= at]
        assert pages(caller, limit=1000, last_appointment_from=at.isoformat()) == [later]
    finally:
        set_types("timestamp", "jsonb")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(20, 400))
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.binary(max_size=60).map(bytes.hex))
def test_malformed_cursor_is_422(caller: httpx.Client, cursor: str) -> None:
    answer = caller.get(PATH, params={"cursor": cursor})
    assert answer.status_code == 422
    assert cursor not in answer.text or len(cursor) < 4


def test_invalid_parameter_is_422(caller: httpx.Client) -> None:
    for name, value in (
        ("limit", "0"),
        ("limit", "1001"),
        ("sort", "name"),
        ("order", "up"),
        ("last_appointment_from", "5"),
        ("last_appointment_from", "2026-06-01T00:00:00"),
        ("contact_id", "1"),
        ("has_upcoming", "perhaps"),
        ("unknown", "1"),
    ):
        answer = caller.get(PATH, params={name: value})
        assert answer.status_code == 422, name
        assert answer.json()["errors"][0]["where"].startswith("query")
    cursor = caller.get(PATH, params={"limit": 1}).json()["next_cursor"]
    for changed in ({"sort": "contact_id"}, {"order": "asc"}):
        assert caller.get(PATH, params={"cursor": cursor, "limit": 1} | changed).status_code == 422
    for outside in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        content = {"sort": "last_appointment_date", "order": "desc", "value": outside, "contact_id": str(UUID(int=1))}
        encoded = urlsafe_b64encode(json.dumps(content).encode()).decode()
        for parameters in ({"last_appointment_from": outside}, {"cursor": encoded}):
            assert caller.get(PATH, params=parameters).status_code == 422
