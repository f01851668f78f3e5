"""Active patients over HTTP: pages, orders, filters, ETags and CSV, held against the rows themselves."""

import csv
import io
import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from threading import Event
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.pipelines import opened_pipeline
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.services import client, token

NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
SORTS = (
    "contact_id",
    "last_appointment_date",
    "recent_appointment_count",
    "upcoming_appointment_count",
    "total_appointment_count",
)

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


@pytest.fixture(scope="module")
def database(server_url: URL, template: str) -> Iterator[Database]:
    with created_database(server_url, template) as url:
        database = Database(url)
        for organization, rows in (("alpha", 73), ("beta", 9), ("empty", 0)):
            with database.operator() as connection:
                connection.execute(
                    sa.text(
                        "insert into public.api_credentials (organization_id, service_name, credentials_encrypted)"
                        " values (:id, 'cliniko', '{}')"
                    ),
                    {"id": organization},
                )
            replace(database, organization, rows, NOW)
        yield database
        database.close()


def replace(database: Database, organization: str, rows: int, now: datetime) -> None:
    """What a sync does to the table: all of the organization's rows, in one transaction."""
    with database.organization(organization) as connection:
        connection.exec_driver_sql("delete from public.active_patients")
        connection.execute(
            sa.text(INSERT),
            {
                "organization": organization,
                "rows": rows,
                "now": now.replace(tzinfo=None),
                "appointments": json.dumps(APPOINTMENTS),
            },
        )


@pytest.fixture(scope="module")
def url(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environ = environment(database.url, tmp_path_factory.mktemp("home"))
    with opened_pipeline(environ) as pipeline, served(pipeline.runtime) as url:
        yield url


@pytest.fixture(scope="module")
def whoever(url: str, database: Database) -> Iterator[httpx.Client]:
    text = token(database, "read", organizations=["alpha", "empty"], requests_per_minute=100_000)
    with client(url, text) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(whoever: httpx.Client) -> list[dict[str, Any]]:
    found = whoever.get("/v1/organizations/alpha/active-patients", params={"limit": 1000}).json()
    assert found["next_cursor"] is None
    assert len(found["items"]) == 73
    return found["items"]


def pages(whoever: httpx.Client, organization: str = "alpha", **query: Any) -> list[list[dict[str, Any]]]:
    found = []
    cursor: dict[str, str] = {}
    while True:
        answer = whoever.get(f"/v1/organizations/{organization}/active-patients", params=query | cursor)
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["items"])
        following = answer.json()["next_cursor"]
        assert ("next" in answer.links) == (following is not None)
        if following is None:
            return found
        assert httpx.URL(answer.links["next"]["url"]).params["cursor"] == following
        cursor = {"cursor": following}


instants = st.integers(-15, 3).map(lambda hours: NOW + timedelta(hours=hours))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(40))
@given(data=st.data())
def test_pages_hold_every_row_once_in_order_whatever_is_asked_for(
    whoever: httpx.Client, rows: list[dict[str, Any]], data: st.DataObject
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
    found = pages(whoever, sort=sort, order=order, limit=limit, **query)
    assert all(len(page) == limit for page in found[:-1])
    expected = [row for row in rows if _is_wanted(row, filters)]
    expected.sort(key=lambda row: (_value(row, sort), UUID(row["contact_id"]).bytes), reverse=order == "desc")
    assert [row for page in found for row in page] == expected


def _value(row: dict[str, Any], sort: str) -> Any:
    return UUID(row["contact_id"]).bytes if sort == "contact_id" else row[sort]


def _is_wanted(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    last = datetime.fromisoformat(row["last_appointment_date"])
    return (
        filters.get("has_upcoming") in {None, row["upcoming_appointment_count"] > 0}
        and last >= filters.get("last_appointment_from", last)
        and ("last_appointment_before" not in filters or last < filters["last_appointment_before"])
        and row["contact_id"] in filters.get("contact_id", [row["contact_id"]])
    )


def test_a_page_holds_what_the_table_holds(rows: list[dict[str, Any]], database: Database) -> None:
    with database.organization("alpha") as connection:
        stored = connection.exec_driver_sql("select * from public.active_patients order by id limit 1").mappings().one()
    (row,) = (each for each in rows if each["contact_id"] == str(stored["contact_id"]))
    assert row["recent_appointments"] == stored["recent_appointments"] == APPOINTMENTS
    assert row["search_date_to"] == "2026-06-15T09:30:00Z"
    assert datetime.fromisoformat(row["last_appointment_date"]) == stored["last_appointment_date"].replace(tzinfo=UTC)
    for name in ("recent", "upcoming", "total"):
        assert row[f"{name}_appointment_count"] == stored[f"{name}_appointment_count"]


def test_one_is_found_by_its_contact_and_nobody_elses(
    whoever: httpx.Client, rows: list[dict[str, Any]], database: Database
) -> None:
    contact = rows[0]["contact_id"]
    assert whoever.get(f"/v1/organizations/alpha/active-patients/{contact}").json() == rows[0]
    with database.organization("beta") as connection:
        theirs = connection.exec_driver_sql("select contact_id from public.active_patients limit 1").scalar_one()
    assert whoever.get(f"/v1/organizations/alpha/active-patients/{theirs}").status_code == 404
    assert pages(whoever, "alpha", contact_id=str(theirs)) == [[]]


def test_an_organization_without_active_patients_has_one_empty_page(whoever: httpx.Client) -> None:
    assert pages(whoever, "empty") == [[]]


def test_csv_holds_the_same_as_json(whoever: httpx.Client, rows: list[dict[str, Any]]) -> None:
    answer = whoever.get(
        "/v1/organizations/alpha/active-patients", params={"limit": 1000}, headers={"Accept": "text/csv"}
    )
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    read = list(csv.DictReader(io.StringIO(answer.text)))
    assert [
        {name: json.loads(value) if name.endswith(("appointments", "count")) else value for name, value in row.items()}
        for row in read
    ] == rows


def test_an_etag_spares_an_unchanged_page_and_notices_a_change(
    whoever: httpx.Client, database: Database, rows: list[dict[str, Any]]
) -> None:
    address = "/v1/organizations/alpha/active-patients"
    first = whoever.get(address)
    again = whoever.get(address, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    as_csv = whoever.get(address, headers={"If-None-Match": first.headers["etag"], "Accept": "text/csv"})
    assert as_csv.status_code == 200
    replace(database, "alpha", 73, NOW + timedelta(minutes=1))
    changed = whoever.get(address, headers={"If-None-Match": first.headers["etag"]})
    replace(database, "alpha", 73, NOW)
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(40))
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.binary(max_size=60).map(lambda each: each.hex()))
def test_a_cursor_that_is_none_is_refused(whoever: httpx.Client, cursor: str) -> None:
    answer = whoever.get("/v1/organizations/alpha/active-patients", params={"cursor": cursor})
    assert answer.status_code == 422
    assert cursor not in answer.text or len(cursor) < 4


def test_a_cursor_of_another_order_is_refused(whoever: httpx.Client) -> None:
    address = "/v1/organizations/alpha/active-patients"
    cursor = whoever.get(address, params={"limit": 1}).json()["next_cursor"]
    for changed in ({"sort": "contact_id"}, {"order": "asc"}):
        assert whoever.get(address, params={"cursor": cursor, "limit": 1} | changed).status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "sort=name",
        "order=up",
        "last_appointment_from=5",
        "last_appointment_from=2026-06-01T00:00:00",
        "contact_id=1",
        "has_upcoming=perhaps",
        "unknown=1",
    ],
)
def test_wrong_parameters_are_named_without_what_they_held(whoever: httpx.Client, query: str) -> None:
    answer = whoever.get(f"/v1/organizations/alpha/active-patients?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"].startswith("query")


def test_fifty_readers_see_whole_syncs_only_while_one_replaces_the_rows(
    whoever: httpx.Client, database: Database
) -> None:
    has_ended = Event()

    def write() -> int:
        count = 0
        while not has_ended.is_set():
            count += 1
            replace(database, "empty", 150 if count % 2 else 60, NOW + timedelta(minutes=count))
        return count

    def read(_reader: int) -> set[tuple[int, int]]:
        seen = set()
        for _ in range(6):
            answer = whoever.get("/v1/organizations/empty/active-patients", params={"limit": 1000})
            assert answer.status_code == 200, answer.text
            items = answer.json()["items"]
            seen.add((len(items), len({item["search_date_to"] for item in items})))
        return seen

    with ThreadPoolExecutor(51) as executor:
        writer = executor.submit(write)
        try:
            seen = set[tuple[int, int]]().union(*executor.map(read, range(50)))
        finally:
            has_ended.set()
        assert writer.result() > 3
    replace(database, "empty", 0, NOW)
    assert seen - {(0, 0)} == {(150, 1), (60, 1)}


@pytest.mark.parametrize("offset", [timedelta(0), timedelta(hours=10), timedelta(hours=-7), timedelta(minutes=345)])
def test_an_instant_means_the_same_in_every_time_zone(
    whoever: httpx.Client, rows: list[dict[str, Any]], offset: timedelta
) -> None:
    at = NOW - timedelta(hours=5)
    address = "/v1/organizations/alpha/active-patients"
    written = at.astimezone(timezone(offset)).isoformat()
    for name, is_meant in (("from", lambda last: last >= at), ("before", lambda last: last < at)):
        answer = whoever.get(address, params={"limit": 1000, f"last_appointment_{name}": written})
        meant = {row["contact_id"] for row in rows if is_meant(datetime.fromisoformat(row["last_appointment_date"]))}
        assert {row["contact_id"] for row in answer.json()["items"]} == meant
        assert 0 < len(meant) < len(rows)


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_instant_outside_of_all_years_is_refused(whoever: httpx.Client, instant: str) -> None:
    address = "/v1/organizations/alpha/active-patients"
    assert whoever.get(address, params={"last_appointment_from": instant}).status_code == 422
    cursor = json.dumps(
        {"sort": "last_appointment_date", "order": "desc", "value": instant, "contact_id": str(UUID(int=1))}
    )
    encoded = urlsafe_b64encode(cursor.encode()).decode()
    assert whoever.get(address, params={"cursor": encoded}).status_code == 422


@pytest.mark.parametrize("organization", ["clínica", "诊所", "a b", "a?b#c>d", "%41", "line\u2028end"])
def test_pages_are_linked_whatever_the_organization_is_called(url: str, database: Database, organization: str) -> None:
    with database.operator() as connection:
        connection.execute(
            sa.text(
                "insert into public.api_credentials (organization_id, service_name, credentials_encrypted)"
                " values (:id, 'cliniko', '{}')"
            ),
            {"id": organization},
        )
    replace(database, organization, 5, NOW)
    text = token(database, "read", organizations=[organization], requests_per_minute=100_000)
    found: list[str] = []
    following = f"/v1/organizations/{quote(organization)}/active-patients?limit=2"
    with client(url, text) as whoever:
        while following:
            answer = whoever.get(following)
            assert answer.status_code == 200, answer.text
            found += [row["contact_id"] for row in answer.json()["items"]]
            following = answer.links.get("next", {}).get("url", "")
    assert len(set(found)) == len(found) == 5


@pytest.mark.parametrize("appointments", ["json", "text"])
def test_a_table_of_the_applications_own_types_is_read_alike(
    whoever: httpx.Client, database: Database, rows: list[dict[str, Any]], appointments: str
) -> None:
    def set_types(instant: str, array: str) -> None:
        times = ", ".join(
            f"alter {column} type {instant} using {column} at time zone 'UTC'"
            for column in ("last_appointment_date", "search_date_from", "search_date_to")
        )
        with database.operator() as connection:
            connection.exec_driver_sql(f"alter table public.active_patients {times}")
            connection.exec_driver_sql(
                f"alter table public.active_patients alter recent_appointments type {array}"
                f" using recent_appointments::{array}"
            )

    set_types("timestamptz", appointments)
    try:
        found = [row for page in pages(whoever, limit=20) for row in page]
        assert found == rows
        one = whoever.get(f"/v1/organizations/alpha/active-patients/{rows[0]['contact_id']}")
        assert one.json() == rows[0]
        at = NOW - timedelta(hours=5)
        later = [row for row in rows if datetime.fromisoformat(row["last_appointment_date"]) >= at]
        assert pages(whoever, limit=1000, last_appointment_from=at.isoformat()) == [later]
    finally:
        set_types("timestamp", "jsonb")
