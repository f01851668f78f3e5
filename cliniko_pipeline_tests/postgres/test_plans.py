"""Tests of the plans of large queries, which must not process a quadratic number of rows.

The rows of each step in EXPLAIN are counted, because times are not reliable.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, CONTACT_MAPPING, Table
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.merge import Written, replace_by_query

SIZE = 1_500
ID = "(100000 + n)::text"
ALL = f"from generate_series(0, {SIZE} - 1) as n"
AS_OF = datetime(2026, 6, 15, tzinfo=UTC)
QUERIES: dict[str, tuple[Table, dict[str, object]]] = {
    "contact_mapping": (CONTACT_MAPPING, {}),
    "active_patients": (
        ACTIVE_PATIENTS,
        {"as_of": AS_OF, "activity_window": timedelta(days=60), "count_no_shows": True},
    ),
}

# The columns of patients are first_name, last_name, email and merged_into_id, those of contacts cliniko_patient_id,
# name and email.
PEOPLE = {
    "one e-mail": (
        "'First' || n, 'Last', 'info@example.com', null",
        "null, 'First' || n || ' Last', 'info@example.com'",
    ),
    "one e-mail, other names": (
        "'First' || n, 'Last', 'info@example.com', null",
        "null, 'Other' || n, 'info@example.com'",
    ),
    "one name": ("'Alex', 'Smith', null, null", "null, 'Alex Smith', null"),
    "one e-mail and one name": (
        "'Alex', 'Smith', 'info@example.com', null",
        "null, 'Alex Smith', 'info@example.com'",
    ),
    "one name in many families": (
        "'Alex', 'Smith', n / 3 || '@example.com', null",
        "null, 'Alex Smith', n / 3 || '@example.com'",
    ),
    "one patient that all contacts name": (
        "'Alex', 'Smith', 'info@example.com', null",
        "'100000', 'Alex Smith', 'info@example.com'",
    ),
    "one chain of merges": (
        f"'Alex', 'Smith', 'info@example.com', case when n < {SIZE} - 1 then (100001 + n)::text end",
        f"{ID}, 'Alex Smith', 'info@example.com'",
    ),
    "ordinary people": (
        "'First' || n, 'Last' || n / 2, n / 2 || '@example.com', case when mod(n, 5) = 1 then (99999 + n)::text end",
        f"case when mod(n, 3) = 0 then {ID} end, 'First' || n || ' Last' || n / 2, n / 2 || '@example.com'",
    ),
}
# The patient of the n-th individual appointment, then the booking and the patient of the n-th attendee.
ATTENDED = {
    "one patient comes to everything": ("'100000'", "(n + 1)::text", "'100000'"),
    "one class for all": (ID, "'1'", ID),
    "one class, one patient added again and again": (ID, "'1'", "'100000'"),
}


@pytest.mark.parametrize("people", PEOPLE)
def test_mapping_of_patients_is_linear(database: Database, people: str) -> None:
    _store_people(database, *PEOPLE[people])
    assert _most_rows(database, "contact_mapping") <= 2 * SIZE
    assert _compute(database)[0].inserted
    _analyze(database)
    assert _most_rows(database, "contact_mapping") <= 2 * SIZE


@pytest.mark.parametrize("attended", ATTENDED)
def test_active_patients_of_one_class_are_counted_linearly(database: Database, attended: str) -> None:
    _store_people(database, "'First' || n, 'Last', null, null", f"{ID}, null, null")
    _store_attendances(database, *ATTENDED[attended])
    assert all(written.inserted for written in _compute(database))
    assert _most_rows(database, "active_patients") <= 2 * SIZE
    _analyze(database)
    assert _most_rows(database, "active_patients") <= 2 * SIZE


def test_deleted_records_are_found_without_nested_loop(database: Database) -> None:
    _store_attendances(database, ID, "(n + 1)::text", ID)
    with database.organization("a") as connection:
        crawls.begin(connection, "attendees", is_full=True, reconciles=True)
        crawls.save_crawled_ids(connection, "attendees", [str(number) for number in range(SIZE // 10, SIZE)])
        assert crawls.count_missing(connection, "attendees", None) == crawls.MissingCount(SIZE, SIZE // 10)
        for name in ("count_missing", "mark_missing_deleted", "count_stored"):
            statement = sql(f"crawls/{name}")
            parameters = {"resource": "attendees", "next_cursor": None, "created_before": None}
            used = {key: value for key, value in parameters.items() if f":{key}" in statement}
            steps = {node["Node Type"] for node in _nodes(connection, "", statement, used)}
            assert "Nested Loop" not in steps, name
        assert crawls.mark_missing_deleted(connection, "attendees", None) == SIZE // 10


def test_planner_settings_end_with_the_organization_context(database: Database) -> None:
    with database.organization("a") as connection:
        assert connection.execute(sa.text("show enable_nestloop")).scalar_one() == "off"
    with database.operator() as connection:
        assert connection.execute(sa.text("show enable_nestloop")).scalar_one() == "on"


def _store_people(database: Database, patient: str, contact: str) -> None:
    """Store patients and contacts. Do not analyze the tables, which tests do themselves."""
    with database.operator() as connection:
        for table in ("cliniko.patients", "cliniko.appointments", "cliniko.attendees", "public.contacts"):
            connection.exec_driver_sql(f"alter table {table} set (autovacuum_enabled = false)")
        connection.exec_driver_sql(
            "insert into public.contacts (organization_id, cliniko_patient_id, name, email)"
            f" select 'a', {contact} {ALL}"
        )
    with database.organization("a") as connection:
        connection.exec_driver_sql(
            "insert into cliniko.patients"
            " (organization_id, id, created_at, updated_at, first_name, last_name, email, merged_into_id)"
            f" select 'a', {ID}, now(), now(), {patient} {ALL}"
        )


def _store_attendances(database: Database, individual: str, booking: str, attendee: str) -> None:
    with database.organization("a") as connection:
        connection.exec_driver_sql(
            f"""
            insert into cliniko.appointments
                (organization_id, kind, id, patient_id, starts_at, did_not_arrive, created_at, updated_at)
            select 'a', kind, (n + 1)::text, case when kind = 'individual' then {individual} end,
                timestamptz '2026-06-20' - n * interval '1 hour', false, now(), now()
            {ALL} cross join unnest(array['individual', 'group']) as kind;
            insert into cliniko.attendees (organization_id, id, booking_id, patient_id, created_at, updated_at)
            select 'a', n::text, {booking}, {attendee}, now(), now() {ALL}
            """
        )


def _compute(database: Database) -> list[Written]:
    with database.organization("a") as connection:
        return [
            replace_by_query(connection, table, sql(f"transforms/{name}"), parameters)
            for name, (table, parameters) in QUERIES.items()
        ]


def _analyze(database: Database) -> None:
    with database.operator() as connection:
        connection.exec_driver_sql("analyze")


def _nodes(connection: Connection, options: str, query: str, parameters: dict[str, object]) -> list[dict[str, Any]]:
    plan = connection.execute(sa.text(f"explain ({options}format json) {query}"), parameters).scalar_one()

    def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for child in node.get("Plans", []):
            yield from walk(child)

    return list(walk((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))


def _most_rows(database: Database, name: str) -> int:
    """Return the rows of the step that returned or removed the most rows."""
    counted = ("Actual Rows", "Rows Removed by Join Filter", "Rows Removed by Filter")
    with database.organization("a") as connection:
        nodes = _nodes(connection, "analyze, timing off, ", sql(f"transforms/{name}"), QUERIES[name][1])
    return int(max(node.get(rows, 0) * node["Actual Loops"] for node in nodes for rows in counted))
