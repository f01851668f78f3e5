"""What the two large queries go through where everybody is like everybody else: counted row by row, not timed.

EXPLAIN says of each step how many rows it gave and how many it threw away. None may be a multiple of the rows that are
stored: a step that brought each with each together would be at their square.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.merge import replace_by_query
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, CONTACT_MAPPING

SIZE = 1_500
ID = "(100000 + n)::text"
AS_OF = datetime(2026, 6, 15, tzinfo=UTC)
PARAMETERS = {"as_of": AS_OF, "activity_window": timedelta(days=60), "count_no_shows": True}

# Of each patient: first_name, last_name, email, merged_into_id; of each contact: cliniko_patient_id, name, email.
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
}

# Who comes to the n-th individual appointment and what the n-th attendee attends, and who it is.
ATTENDED = {
    "one patient comes to everything": ("'100000'", "(n + 1)::text", "'100000'"),
    "one class for all": (ID, "'1'", ID),
    "one class, one patient added again and again": (ID, "'1'", "'100000'"),
}


@pytest.mark.parametrize("people", PEOPLE)
def test_mapping_of_alike_patients_is_linear(database: Database, people: str) -> None:
    patient, contact = PEOPLE[people]
    _store(database, patient, contact)
    assert _most_rows(database, "contact_mapping", {}) <= 2 * SIZE
    _analyze(database)
    assert _most_rows(database, "contact_mapping", {}) <= 2 * SIZE


@pytest.mark.parametrize("attended", ATTENDED)
def test_active_patients_of_one_class_are_counted_linearly(database: Database, attended: str) -> None:
    _store(database, "'First' || n, 'Last', null, null", f"{ID}, null, null")
    individual, booking, attendee = ATTENDED[attended]
    with database.organization("a") as connection:
        connection.exec_driver_sql(
            f"""
            insert into cliniko.appointments
                (organization_id, kind, id, patient_id, starts_at, did_not_arrive, created_at, updated_at)
            select 'a', kind, (n + 1)::text, case when kind = 'individual' then {individual} end,
                timestamptz '2026-06-20' - n * interval '1 hour', false, now(), now()
            from generate_series(0, {SIZE} - 1) as n
            cross join unnest(array['individual', 'group']) as kind;
            insert into cliniko.attendees (organization_id, id, booking_id, patient_id, created_at, updated_at)
            select 'a', n::text, {booking}, {attendee}, now(), now() from generate_series(0, {SIZE} - 1) as n
            """
        )
        replace_by_query(connection, CONTACT_MAPPING, sql("contact_mapping"), {})
        assert replace_by_query(connection, ACTIVE_PATIENTS, sql("active_patients"), PARAMETERS).inserted
    assert _most_rows(database, "active_patients", PARAMETERS) <= 2 * SIZE
    _analyze(database)
    assert _most_rows(database, "active_patients", PARAMETERS) <= 2 * SIZE


def _store(database: Database, patient: str, contact: str) -> None:
    """Nothing knows yet how many rows there are."""
    with database.operator() as connection:
        for table in ("cliniko.patients", "cliniko.appointments", "cliniko.attendees", "public.contacts"):
            connection.exec_driver_sql(f"alter table {table} set (autovacuum_enabled = false)")
        connection.exec_driver_sql(
            "insert into public.contacts (organization_id, cliniko_patient_id, name, email)"
            f" select 'a', {contact} from generate_series(0, {SIZE} - 1) as n"
        )
    with database.organization("a") as connection:
        connection.exec_driver_sql(
            "insert into cliniko.patients"
            " (organization_id, id, created_at, updated_at, first_name, last_name, email, merged_into_id)"
            f" select 'a', {ID}, now(), now(), {patient} from generate_series(0, {SIZE} - 1) as n"
        )


def _analyze(database: Database) -> None:
    with database.operator() as connection:
        connection.exec_driver_sql("analyze")


def _most_rows(database: Database, query: str, parameters: dict[str, Any]) -> int:
    """Of the step that gave, or threw away, the most."""
    with database.organization("a") as connection:
        connection.execute(sa.text(sql("plan_for_whole_tables")))  # as `replace_by_query` does
        explained = f"explain (analyze, timing off, format json) {sql(query)}"
        plan = connection.execute(sa.text(explained), parameters).scalar_one()
    plan = json.loads(plan) if isinstance(plan, str) else plan

    def rows(node: dict[str, Any]) -> Iterator[float]:
        yield node["Actual Rows"] * node["Actual Loops"]
        for thrown_away in ("Rows Removed by Join Filter", "Rows Removed by Filter"):
            yield node.get(thrown_away, 0) * node["Actual Loops"]
        for child in node.get("Plans", []):
            yield from rows(child)

    return max(map(int, rows(plan[0]["Plan"])))
